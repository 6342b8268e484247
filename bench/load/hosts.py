"""The two hosts under load, and the process that serves one of them.

Both do the same: a page names a conversation, its stream ticks every second, and a message in the one room goes to
every stream. `stube_host` uses `stube.asgi`; `host_by_hand` is written as people write it without stube: a dict of
queues, a task for each clock, a loop over the dict. A tick carries its number, the instant at which it was due and the
instant at which its handler began, in nanoseconds of the monotonic clock, which all processes of a machine share.

    python -m bench.load.hosts stube --backend asyncio

serves one of them on a port that the system chooses, until its standard input ends. The port is the only line that it
prints. Besides the host's own routes there is `/figures`, which reports what the process uses and what the host holds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import stube
from bench.load.figures import BY_HAND, GRACE_SECONDS, STUBE
from stube.asgi import Host

__all__ = ["Application", "host_by_hand", "main", "stube_host"]

_ROOM: Final = "room"
_SECOND: Final = 1_000_000_000


@dataclass(frozen=True)
class Application:
    """One host: its routes, and functions that report its state."""

    app: Starlette
    held: Callable[[], Mapping[str, int]]
    """Returns the numbers of objects that belong to conversations; all are 0 when no page is connected."""
    ledger: Callable[[], str] = lambda: ""
    """Returns the equation of the ledger, if the host keeps a ledger."""


def stube_host(backend: str) -> Application:
    """Return the host with `stube.asgi`, on a registry of this backend."""

    def boot(conversation: stube.Conversation, flow_id: str) -> None:
        arm(conversation, 1)
        conversation.subscribe(_ROOM, "said")

    def arm(conversation: stube.Conversation, number: int) -> None:
        conversation.schedule(("tick", number, time.monotonic_ns() + _SECOND), 1000)

    def dispatch(cid: str, event: stube.Event) -> None:
        began = time.monotonic_ns()
        conversation = host.conversations.get(cid)
        if conversation is None:
            return
        if event.name == "tick":
            number, due = event.payload
            arm(conversation, number + 1)
            host.send(conversation, "tick", f"{number} {due} {began}")
        else:
            host.send(conversation, "said", event.payload)

    host = Host(dispatch, boot, registry=backend, grace_seconds=GRACE_SECONDS)

    async def page(request: Request) -> Response:
        return PlainTextResponse(host.open("home").cid)

    async def stream(request: Request) -> Response:
        return host.stream(request.path_params["cid"])

    async def say(request: Request) -> Response:
        text = (await request.body()).decode()
        accepted = time.monotonic_ns()
        host.registry.publish(_ROOM, text)
        return PlainTextResponse(str(accepted))

    def held() -> Mapping[str, int]:
        stats = host.registry.stats()
        containers: Mapping[str, int] = cast("Any", host.registry).sizes()
        return {
            "conversations": len(host.conversations),
            "batons": stats.pending_flows,
            "timers": stats.timers,
            "subscriptions": stats.subscriptions,
            "deliveries queued": stats.queued,
            "deliveries running": stats.running,
            "deliveries without a fate": int(not stats.balanced),
            "conversations in inspect()": len(host.registry.inspect()),
            "entries in sizes()": sum(containers.values()),
        }

    routes = [Route("/", page), Route("/stream/{cid}", stream), Route("/say", say, methods=["POST"])]
    return Application(Starlette(routes=routes, lifespan=host.lifespan), held, lambda: host.registry.stats().equation)


def host_by_hand() -> Application:
    """Return the host with a dict of queues, as people write it without stube."""
    queues: dict[str, asyncio.Queue[tuple[str, str]]] = {}
    clocks: set[asyncio.Task[None]] = set()

    async def tick(queue: asyncio.Queue[tuple[str, str]]) -> None:
        number = 0
        while True:
            due = time.monotonic_ns() + _SECOND
            await asyncio.sleep(1)
            began = time.monotonic_ns()
            number += 1
            queue.put_nowait(("tick", f"{number} {due} {began}"))

    async def events(cid: str) -> AsyncIterator[dict[str, str]]:
        queue = queues[cid] = asyncio.Queue()
        clock = asyncio.create_task(tick(queue))
        clocks.add(clock)
        clock.add_done_callback(clocks.discard)
        try:
            while True:
                event, data = await queue.get()
                yield {"event": event, "data": data}
        finally:
            clock.cancel()
            del queues[cid]

    async def page(request: Request) -> Response:
        return PlainTextResponse(uuid.uuid4().hex)

    async def stream(request: Request) -> Response:
        return EventSourceResponse(events(request.path_params["cid"]))

    async def say(request: Request) -> Response:
        text = (await request.body()).decode()
        accepted = time.monotonic_ns()
        for queue in queues.values():
            queue.put_nowait(("said", text))
        return PlainTextResponse(str(accepted))

    routes = [Route("/", page), Route("/stream/{cid}", stream), Route("/say", say, methods=["POST"])]
    return Application(Starlette(routes=routes), lambda: {"queues": len(queues), "clocks": len(clocks)})


async def _serve(application: Application, listener: socket.socket) -> None:
    """Serve until the standard input ends, because the parent process has closed it or has ended."""
    config = uvicorn.Config(
        application.app,
        http="h11",  # the parser that is always installed, so that figures of two machines are comparable
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)

    async def figures(request: Request) -> Response:
        """Return what the process has used and what the host holds. With `?collect` collect garbage first, so that
        the memory can be read from outside."""
        if "collect" in request.query_params:
            gc.collect()
        return JSONResponse(
            {
                "cpu_s": time.process_time(),
                "held": dict(application.held()),
                "ledger": application.ledger(),
                "tasks": len(asyncio.all_tasks()),
                "connections": len(server.server_state.connections),
            }
        )

    application.app.router.routes.append(Route("/figures", figures))

    def stop_at_the_end() -> None:
        while os.read(0, 1):
            pass
        server.should_exit = True

    threading.Thread(target=stop_at_the_end, daemon=True).start()
    await server.serve([listener])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=[STUBE, BY_HAND])
    parser.add_argument("--backend", default="asyncio", help="the registry of the host stube (asyncio)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    arguments = parser.parse_args(argv)
    application = stube_host(arguments.backend) if arguments.host == STUBE else host_by_hand()
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(listener.getsockname()[1], flush=True)
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(application, listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
