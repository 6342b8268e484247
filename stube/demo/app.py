"""A host application on `stube.asgi`, from beginning to end: pages with a clock and a chat, over server-sent events.

The life of a conversation, and the parts of it that are written here:

1. `GET /` opens it: `Host.open` puts its baton and schedules a sweep, which ends the conversation of a page that never
   connects.
2. `GET /stream/{cid}`, the first time, boots it: `Demo.boot` starts a clock that re-arms itself and subscribes to the
   room. Later requests resume it: `Host.stream` repeats the events that the page missed; the clock has kept ticking.
3. When a stream is cut, the host keeps the conversation for a grace period and then ends it.
4. `POST /leave/{cid}` ends it immediately. In every case nothing of it remains in the registry.

To show how a registry works, a page can freeze its own handler for a while (`POST /freeze/{cid}`, `POST /thaw/{cid}`):
on a thread, all conversations that share the thread stall; on an event loop no other conversation does. On a virtual
registry the time of clocks and grace periods stops until a page moves it (`POST /advance/{cid}`); only messages are
delivered immediately.

Two threads meet here. The delivery thread calls `Demo.dispatch`, which contains the handlers; `boot` and the routes run
on the server's loop. Both send output to a page with `Host.send`, which discards the output that a handler sends after
the end of its conversation. (On the asyncio backend both are the same thread; on the virtual one the delivery thread is
the caller that moves the clock. Nothing here depends on it.)

The operations of an in-process registry take microseconds, so the routes call them directly. An application whose
registry is on another machine would call them in a worker thread.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.resources import files
from time import monotonic
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import stube
from stube.asgi import Host
from stube.demo._freezer import Freezer
from stube.demo._meter import Meter
from stube.demo._panel import Panel, name_of

__all__ = ["Demo", "create_app"]

ROOM = "room"
FLOW = "clock-and-chat"
ENDED = "This conversation has ended or never existed. Reload the page."
BODY_LIMIT = 4096
TEXT_LIMIT = 500
STEP_LIMIT_MS = 24 * 3_600_000
"""The farthest that one request may move a virtual clock, because each second of it is a tick of every clock."""


class Demo:
    """The application: its handlers and its pages. `host` keeps track of which pages are connected.

    Args:
        registry: where conversations live. The caller closes it.
        sweep_ms: the time that a page has to connect.
        grace_ms: the time that a cut stream has to come back.
        tick_ms: the step of the clock.
        idle_ms: the time of silence after which a page is told that it has been silent.
        freeze_ms: the longest time that a handler stays frozen.
    """

    def __init__(
        self,
        registry: stube.Backend,
        *,
        sweep_ms: float,
        grace_ms: float,
        tick_ms: float,
        idle_ms: float,
        freeze_ms: float,
    ) -> None:
        self.registry = registry
        self._tick_ms, self._idle_ms = tick_ms, idle_ms
        self._page = _page()
        self._virtual = registry if stube.is_virtual(registry) else None
        # The last tick of each conversation that ticked. Written by the thread that moves a virtual clock, read on the
        # loop.
        self._ticks: dict[stube.Conversation, int] = {}
        self._freezer = Freezer(freeze_ms)
        self._meter = Meter(self._now_ms)
        self._panel = Panel(registry, self._meter, self._freezer, self._now_ms)
        # On a virtual registry no handler is ever frozen, so none needs to await.
        self.host = Host(
            self.dispatch_awaiting if stube.is_async(registry) else self.dispatch,
            self.boot,
            registry=registry,
            on_end=self._ended,
            sweep_seconds=sweep_ms / 1000,
            grace_seconds=grace_ms / 1000,
        )

    async def boot(self, conversation: stube.Conversation, flow_id: str) -> None:
        """Start the flow when the first stream has come. There is only one flow, so its id is not used.

        A coroutine function, so that the host runs it on the loop, where the routes run: no route publishes a message
        between its lines.
        """
        conversation.subscribe(ROOM, "said", instance_id="chat")
        conversation.schedule(("tick", 1), self._tick_ms, instance_id="clock")
        self._schedule_idle(conversation)
        self._show(conversation, "hello", {"name": name_of(conversation.cid)})

    def _ended(self, conversation: stube.Conversation) -> None:
        """Thaw the handler of a conversation that has ended."""
        self._freezer.thaw(conversation.cid)

    # The handlers: on the delivery thread, one at a time per conversation.

    def dispatch(self, cid: str, event: stube.Event) -> None:
        """Handle one delivery. The host calls this for every delivery except its own."""
        self._note(event)
        conversation = self.host.conversations.get(cid)
        if conversation is None:
            return
        match event:
            case stube.Event("tick", int(number)):
                # The clock's state is in the payload of its timer, so there is nothing to store or to clean up.
                # If the conversation has ended by now, this raises ConversationEnded, which the registry counts as
                # delivered.
                conversation.schedule(("tick", number + 1), self._tick_ms, instance_id="clock", since=event)
                self._show_tick(conversation, number)
            case stube.Event("said", message):
                self._show(conversation, "said", message)
            case stube.Event("idle"):
                self._show(conversation, "idle", {"minutes": self._idle_ms / 60_000})
            case stube.Event("freeze"):
                with self._freezing(conversation) as latch:
                    if latch is not None:
                        self._freezer.hold(latch)
            case _:
                raise LookupError(f"This host has no handler for {event!r}.")

    async def dispatch_awaiting(self, cid: str, event: stube.Event) -> None:
        """`dispatch` for a registry that awaits it: a frozen handler does not delay the handlers of others."""
        conversation = self.host.conversations.get(cid)
        if conversation is None or event.name != "freeze":
            self.dispatch(cid, event)
            return
        self._note(event)
        with self._freezing(conversation) as latch:
            if latch is not None:
                await self._freezer.hold_awaiting(latch)

    @contextmanager
    def _freezing(self, conversation: stube.Conversation) -> Iterator[Future[None] | None]:
        """Tell the page when its handler freezes and when it continues; gives None if the freeze was taken back."""
        latch, begin = self._freezer.begin(conversation.cid), monotonic()
        if latch is None:
            yield None
            return
        self._show(conversation, "frozen", {"seconds": self._freezer.seconds})
        try:
            yield latch
        finally:
            self._freezer.end(conversation.cid, latch)
            self._show(conversation, "thawed", {"seconds": round(monotonic() - begin, 1)})

    def _note(self, event: stube.Event) -> None:
        self._meter.note(event.due / 1e6 if event.name == "tick" and event.due is not None else None)

    def _schedule_idle(self, conversation: stube.Conversation) -> None:
        """Start the timer that tells a page that it has been silent, or start it again."""
        conversation.schedule("idle", self._idle_ms, instance_id="idle", replace=True)

    def _now_ms(self) -> float:
        """Return the time on the clock of the registry's timers. Thread-safe."""
        return self.registry.now_ns / 1e6

    def _show_tick(self, conversation: stube.Conversation, number: int) -> None:
        # On a virtual clock half an hour may pass in a moment: 1800 ticks, of which a page needs only the last.
        if self._virtual is None:
            self._show(conversation, "tick", {"number": number})
        else:
            self._ticks[conversation] = number

    def _show(self, conversation: stube.Conversation, kind: str, data: dict[str, Any]) -> None:
        # JSON in ASCII: half a surrogate pair in a message could not be encoded otherwise.
        self.host.send(conversation, kind, json.dumps(data))

    # The routes: on the server's loop.

    async def page(self, request: Request) -> Response:
        """`GET /`: open a conversation and return its page."""
        conversation = self.host.open(FLOW)
        nonce = secrets.token_urlsafe(16)
        html = self._page
        name, ability = name_of(conversation.cid), "freeze" if self._virtual is None else "advance"
        for field, value in ("cid", conversation.cid), ("name", name), ("ability", ability), ("nonce", nonce):
            html = html.replace("{{" + field + "}}", value)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        # If a cache returned a page twice, two pages would share one conversation.
        return HTMLResponse(html, headers={"Cache-Control": "no-store", "Content-Security-Policy": policy})

    async def stream(self, request: Request) -> Response:
        """`GET /stream/{cid}`: boot the conversation, or resume it, and send its events."""
        return self.host.stream(request.path_params["cid"])

    async def say(self, request: Request) -> Response:
        """`POST /say/{cid}` with `{"text": "..."}`: publish a message to all pages in the room."""
        data = await _read_object(request, "text")
        text = data if isinstance(data, str) else ""
        if not 0 < len(text.strip()) <= TEXT_LIMIT:
            raise HTTPException(422, f'The body must be {{"text": "..."}} with 1 to {TEXT_LIMIT} characters.')
        conversation = self._conversation(request)
        self._schedule_idle(conversation)
        message = {"from": name_of(conversation.cid), "text": text.strip()}
        targets = self.registry.publish(ROOM, message)
        if self._virtual is not None:
            self._virtual.settle(0)  # deliver now; if another thread is moving the clock, that thread delivers it
            self._flush_ticks()
        return JSONResponse({"targets": targets}, 202)

    async def freeze(self, request: Request) -> Response:
        """`POST /freeze/{cid}`: freeze the next handler of this conversation, for a bounded time."""
        if self._virtual is not None:
            raise HTTPException(404, "A handler cannot be frozen here, because this registry's time is virtual.")
        conversation = self._conversation(request)
        if self._freezer.ask(conversation.cid):
            try:
                conversation.schedule("freeze", 0, instance_id="freezer")
            except stube.StubeError:
                self._freezer.thaw(conversation.cid)
                raise
        return Response(status_code=202)

    async def thaw(self, request: Request) -> Response:
        """`POST /thaw/{cid}`: let a frozen handler continue."""
        self._freezer.thaw(self._conversation(request).cid)
        return Response(status_code=204)

    async def advance(self, request: Request) -> Response:
        """`POST /advance/{cid}` with `{"ms": 1000}`: move the virtual clock, which all pages share."""
        step = await _read_object(request, "ms")
        self._conversation(request)
        if self._virtual is None:
            raise HTTPException(404, "This registry's time is real. Wait.")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 < step <= STEP_LIMIT_MS:
            raise HTTPException(422, f'The body must be {{"ms": 1}}, up to {STEP_LIMIT_MS}.')
        try:
            # In a thread, because a long step makes many deliveries, and the loop must keep serving the streams.
            await asyncio.to_thread(self._virtual.advance, step)
        except stube.VirtualTimeError:
            raise HTTPException(409, "Another page is moving the clock at this moment. Try again.") from None
        finally:
            self._flush_ticks()
            self._panel.renew()
        return JSONResponse({"now_ms": self._virtual.now_ms})

    def _flush_ticks(self) -> None:
        while self._ticks:
            conversation, number = self._ticks.popitem()
            self._show(conversation, "tick", {"number": number})

    async def leave(self, request: Request) -> Response:
        """`POST /leave/{cid}`: the page is being closed."""
        self._conversation(request).end()
        return Response(status_code=204)

    async def panel(self, request: Request) -> Response:
        """`GET /registry`: the content of the inspector; one snapshot for all requests within a moment."""
        return Response(self._panel.body(), media_type="application/json", headers={"Cache-Control": "no-store"})

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: the server answers."""
        return PlainTextResponse("ok\n")

    def _conversation(self, request: Request) -> stube.Conversation:
        conversation = self.host.conversations.get(request.path_params["cid"])
        if conversation is None:
            raise HTTPException(404, ENDED)
        return conversation


def _page() -> str:
    """Return the page with its style and its script inside, so that one response is enough."""
    folder = files("stube.demo")
    html, css, js = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return html.replace("{{style}}", css).replace("{{script}}", js)


async def _read_object(request: Request, field: str) -> Any:
    """Return the value of `field` in the body, a JSON object; None if there is no such value."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, f"The message is longer than {BODY_LIMIT} bytes.")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    return data.get(field) if isinstance(data, dict) else None


async def _ended(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(ENDED, 404)


async def _no_room(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), 503)


def create_app(
    registry: stube.Backend,
    *,
    sweep_ms: float = 10_000,
    grace_ms: float = 5_000,
    tick_ms: float = 1_000,
    idle_ms: float = 1_800_000,
    freeze_ms: float = 10_000,
) -> Starlette:
    """Return the application on a registry. Its `state.demo` is the `Demo`. The caller closes the registry.

    Args:
        registry: any backend. The clock of a virtual one moves only when a page moves it.
        sweep_ms: the time that a page has to connect.
        grace_ms: the time that a cut stream has to come back.
        tick_ms: the step of the clock.
        idle_ms: the time of silence after which a page is told that it has been silent.
        freeze_ms: the longest time that a handler stays frozen.
    """
    times = {"sweep_ms": sweep_ms, "grace_ms": grace_ms, "tick_ms": tick_ms}
    demo = Demo(registry, **times, idle_ms=idle_ms, freeze_ms=freeze_ms)
    app = Starlette(
        routes=[
            Route("/", demo.page),
            Route("/stream/{cid}", demo.stream),
            Route("/say/{cid}", demo.say, methods=["POST"]),
            Route("/leave/{cid}", demo.leave, methods=["POST"]),
            Route("/freeze/{cid}", demo.freeze, methods=["POST"]),
            Route("/thaw/{cid}", demo.thaw, methods=["POST"]),
            Route("/advance/{cid}", demo.advance, methods=["POST"]),
            Route("/registry", demo.panel),
            Route("/healthz", demo.healthz),
        ],
        exception_handlers={
            stube.ConversationEnded: _ended,  # the conversation ended after a route had found it
            stube.RegistryFull: _no_room,
            stube.RegistryClosed: _no_room,
        },
        lifespan=demo.host.lifespan,
    )
    app.state.demo = demo
    return app
