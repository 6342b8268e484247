"""`stube.asgi` on a real uvicorn over real HTTP.

Time that decides something is virtual: sweep and grace are timers of the registry, so a test that needs them to come
moves the clock of the backend "virtual". Real time is a bound only, but for heartbeats, whose interval is real.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import stube

NEEDED = "needs the extras 'asgi' and 'demo': pip install 'stube[asgi,demo]'"
httpx = pytest.importorskip("httpx", reason=NEEDED)
uvicorn = pytest.importorskip("uvicorn", reason=NEEDED)
for module in ("sse_starlette", "starlette"):
    pytest.importorskip(module, reason=NEEDED)

from sse_starlette.sse import AppStatus  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse, PlainTextResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

from stube.asgi import Host, conversation_stream  # noqa: E402
from stube.asgi._server import stopping  # noqa: E402
from stube.asgi._sessions import INSTANCE, Sessions  # noqa: E402

PROMPT = 20.0
"""Seconds that nothing here takes on a busy machine: a wait of this length is a failure."""


def fail(app: object) -> None:
    """A database, say, that is not there."""
    raise ZeroDivisionError("no database")


def no_boot(conversation: stube.Conversation, flow_id: Any) -> None:
    """A flow that has nothing to begin."""


def no_dispatch(cid: str, event: stube.Event) -> None:
    """A host without handlers."""


# The host under test


def application(host: Host, **more: Any) -> Starlette:
    """The routes that an author writes: a page, a stream, and a way to leave."""

    async def page(request: Request) -> Response:
        return PlainTextResponse(host.open("flow").cid)

    async def stream(request: Request) -> Response:
        return conversation_stream(request, request.path_params["cid"])  # which is `host.stream(cid)`

    async def leave(request: Request) -> Response:
        host.end(request.path_params["cid"])
        return Response(status_code=204)

    async def state(request: Request) -> Response:
        return JSONResponse({"same": request.app.state.stube is host, **request.state._state})

    routes = [
        Route("/", page),
        Route("/stream/{cid}", stream),
        Route("/leave/{cid}", leave, methods=["POST"]),
        Route("/state", state),
    ]
    return Starlette(routes=routes, **{"lifespan": host.lifespan, **more})


class Server:
    """One application on a uvicorn of its own in a thread; how long it took to stop."""

    def __init__(self, app: Any, **config: Any) -> None:
        options: dict[str, Any] = {"log_config": None, "access_log": False, "ws": "none", "lifespan": "on", **config}
        # A test that a busy machine holds up must not meet a connection that has just been closed as idle.
        options.setdefault("timeout_keep_alive", 120)
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, **options))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.uvicorn.run([self._listener])
        except SystemExit:
            pass  # what uvicorn does when the lifespan does not start

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self.uvicorn.started or not self._thread.is_alive())

    def stop(self, within: float = PROMPT) -> float:
        begin = time.monotonic()
        self.uvicorn.should_exit = True
        self._thread.join(within)
        assert not self._thread.is_alive(), "the server does not stop"
        self._listener.close()
        return time.monotonic() - begin

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()


def wait_until(condition: Callable[[], bool], within: float = PROMPT) -> None:
    """For what has no event to wait for: the server notices a cut in its own time."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.005)


class Page:
    """One connected stream, read as it comes."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.last_id = ""

    def frames(self) -> Iterator[tuple[str, str]]:
        """Name and data of each event, up to the end; a comment has the name ""."""
        name, data = "", []
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "id":
                self.last_id = value
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif line.startswith(":"):
                yield "", value
            elif not line and name:
                yield name, "\n".join(data)
                name, data = "", []

    def events(self) -> Iterator[tuple[str, str]]:
        return (frame for frame in self.frames() if frame[0])

    def next(self) -> tuple[str, str]:
        return next(self.events())

    def take(self, count: int) -> list[tuple[str, str]]:
        return [self.next() for _ in range(count)]

    def rest(self) -> list[tuple[str, str]]:
        return list(self.events())


class Served:
    """A host on a running server, and what a browser does with it."""

    def __init__(self, host: Host, server: Server, stack: ExitStack) -> None:
        self.host, self.server, self._stack = host, server, stack
        self.http = stack.enter_context(httpx.Client(base_url=server.url, timeout=PROMPT, trust_env=False))

    @property
    def registry(self) -> stube.Backend:
        return self.host.registry

    @property
    def sessions(self) -> Sessions:
        assert self.host._sessions is not None
        return self.host._sessions

    def mount(self) -> str:
        cid: str = self.http.get("/").raise_for_status().text
        return cid

    def handle(self, cid: str) -> stube.Conversation:
        conversation = self.host.conversations.get(cid)
        assert conversation is not None
        return conversation

    @contextmanager
    def stream(self, cid: str, last_id: str = "") -> Iterator[Page]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.http.stream("GET", f"/stream/{cid}", headers=headers) as response:
            assert response.status_code == 200, response.read()
            yield Page(response)

    def connect(self, cid: str, last_id: str = "") -> Page:
        """A stream that stays until the end of the test."""
        return self._stack.enter_context(self.stream(cid, last_id))

    def status(self, cid: str) -> int:
        """Return the status with which a stream is refused."""
        with self.http.stream("GET", f"/stream/{cid}") as response:
            code: int = response.status_code
            return code

    def ours(self, cid: str) -> list[str]:
        """Return the names of the host's own pending timers of the conversation."""
        held = self.registry.inspect(cid).get(cid)
        timers = [] if held is None else [timer for timer in held.timers if timer.instance_id == INSTANCE]
        return [str(timer.event) for timer in timers]

    def wait_for_cut(self, cid: str) -> None:
        wait_until(lambda: self.ours(cid) == ["gone"])

    def nothing_is_left(self) -> None:
        assert self.registry.inspect() == {}
        assert len(self.host.conversations) == 0
        assert len(self.sessions) == 0
        stats = self.registry.stats()
        assert stats.balanced
        assert (stats.pending_flows, stats.subscriptions, stats.timers, stats.queued) == (0, 0, 0, 0)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a host; by default on the backend memory, with every time so long that it does not come by itself."""
    with ExitStack() as stack:

        def start(
            dispatch: Any = no_dispatch, boot: Any = no_boot, *, app: Any = application, **options: Any
        ) -> Served:
            long = {"sweep_seconds": 3600, "grace_seconds": 3600, "heartbeat_seconds": 3600}
            host = Host(dispatch, boot, **{"registry": "memory", **long, **options})
            server = Server(app(host))
            server.start()
            stack.callback(lambda: server.stop() if server.alive else None)
            return Served(host, server, stack)

        yield start


@pytest.fixture(params=["memory", "sharded", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# From the page to the stream


def test_first_stream_takes_the_baton_and_boots_the_flow(serve: Serve, backend: str) -> None:
    booted: list[tuple[str, Any]] = []

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        booted.append((conversation.cid, flow_id))
        conversation.schedule(("tick", 1), 1)

    def dispatch(cid: str, event: stube.Event) -> None:
        used.handle(cid).schedule(("tick", event.payload + 1), 1)
        used.host.send(used.handle(cid), "tick", str(event.payload))

    used = serve(dispatch, boot, registry=backend)
    cid = used.mount()
    assert used.ours(cid) == ["sweep"]
    assert used.registry.inspect(cid)[cid].pending_flow
    page = used.connect(cid)
    assert page.take(3) == [("tick", "1"), ("tick", "2"), ("tick", "3")]
    assert booted == [(cid, "flow")]
    assert used.ours(cid) == []
    assert not used.registry.inspect(cid)[cid].pending_flow
    headers = page.response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    used.http.post(f"/leave/{cid}")
    assert page.rest()[-1] == ("bye", '{"reason": "ended"}')
    used.nothing_is_left()


@pytest.mark.parametrize("kind", ["function", "coroutine function", "function of a coroutine"])
def test_boot_may_be_either_kind_and_never_blocks_the_loop(serve: Serve, kind: str) -> None:
    """Fault: a function that waits holds up every other page."""
    where: list[bool] = []

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        try:
            asyncio.get_running_loop()
            where.append(True)
        except RuntimeError:
            where.append(False)
        used.host.send(conversation, "booted", "")

    async def boot_awaiting(conversation: stube.Conversation, flow_id: Any) -> None:
        await asyncio.sleep(0)
        boot(conversation, flow_id)

    kinds = {
        "function": boot,
        "coroutine function": boot_awaiting,
        "function of a coroutine": lambda *arguments: boot_awaiting(*arguments),
    }
    used = serve(boot=kinds[kind])
    assert used.connect(used.mount()).next() == ("booted", "")
    assert where == [kind != "function"]


def test_boot_that_raises_ends_the_conversation(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: after half a boot the conversation lives, with timers, and nothing will end it."""

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        conversation.subscribe("room", "said")
        conversation.schedule("tick", 3_600_000)
        raise ZeroDivisionError("in the boot")

    used = serve(boot=boot)
    cid = used.mount()
    assert used.status(cid) == 500
    wait_until(lambda: "in the boot" in caplog.text)  # the log comes after the answer
    used.nothing_is_left()
    assert used.status(cid) == 404


def test_conversation_that_ends_in_its_boot_is_gone(serve: Serve) -> None:
    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        conversation.end()
        conversation.schedule("tick", 1)

    used = serve(boot=boot)
    assert used.status(used.mount()) == 404
    used.nothing_is_left()


def test_second_stream_during_the_boot_gets_what_it_sends(serve: Serve) -> None:
    """Fault: two streams in one conversation, or a second boot."""
    began, go = threading.Event(), threading.Event()

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        began.set()
        assert go.wait(PROMPT)
        used.host.send(conversation, "booted", "once")

    used = serve(boot=boot)
    cid = used.mount()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: used.connect(cid).rest())
        assert began.wait(PROMPT)
        second = used.connect(cid)
        go.set()
        assert first.result(PROMPT) == [("bye", '{"reason": "replaced"}')]
    assert second.next() == ("booted", "once")
    assert used.ours(cid) == []


def test_page_that_is_none_of_ours_gets_404(serve: Serve) -> None:
    used = serve()
    assert used.status("never-was") == 404
    used.host.conversations.open("not-by-the-host")
    assert used.status("not-by-the-host") == 404


def test_head_does_not_take_the_baton(serve: Serve) -> None:
    used = serve()
    cid = used.mount()
    assert used.http.head(f"/stream/{cid}").status_code == 405
    assert used.registry.inspect(cid)[cid].pending_flow
    assert used.ours(cid) == ["sweep"]


def test_response_that_is_never_called_claims_nothing(serve: Serve) -> None:
    """Fault: an endpoint that throws the response away leaves a conversation that no timer ends."""
    used = serve()
    cid = used.mount()
    used.host.stream(cid)
    assert used.registry.inspect(cid)[cid].pending_flow
    assert used.ours(cid) == ["sweep"]


def test_heartbeats_are_comments_and_have_no_id(serve: Serve) -> None:
    used = serve(heartbeat_seconds=0.02)
    page = used.connect(used.mount())
    frames = page.frames()
    assert [next(frames) for _ in range(3)] == [("", "heartbeat")] * 3
    assert page.last_id == ""


# Cut and resumed


def test_resumed_stream_gets_what_it_missed_once_and_in_order(serve: Serve, backend: str) -> None:
    used = serve(registry=backend)
    cid = used.mount()
    handle = used.handle(cid)
    used.host.send(handle, "n", "0")
    with used.stream(cid) as page:
        used.host.send(handle, "n", "1")
        assert page.take(2) == [("n", "0"), ("n", "1")]
        seen = page.last_id
        used.host.send(handle, "n", "2")  # written, and perhaps never read
    used.wait_for_cut(cid)
    used.host.send(handle, "n", "3")
    page = used.connect(cid, seen)
    used.host.send(handle, "n", "4")
    assert page.take(3) == [("n", "2"), ("n", "3"), ("n", "4")]
    assert used.ours(cid) == []


def test_page_without_an_id_has_seen_nothing(serve: Serve) -> None:
    used = serve()
    cid = used.mount()
    used.host.send(used.handle(cid), "n", "1")
    assert used.connect(cid).next() == ("n", "1")
    assert used.connect(cid).next() == ("n", "1")


def test_gap_says_how_many_were_missed_and_the_rest_follows(serve: Serve) -> None:
    used = serve(buffer_events=4)
    cid = used.mount()
    handle = used.handle(cid)
    with used.stream(cid) as page:
        used.host.send(handle, "n", "0")
        page.next()
        seen = page.last_id
    used.wait_for_cut(cid)
    for number in range(1, 11):
        used.host.send(handle, "n", str(number))
    with used.stream(cid, seen) as page:
        assert page.next() == ("gap", '{"missed": 6}')
        after_gap = page.last_id
        assert page.take(4) == [("n", str(number)) for number in (7, 8, 9, 10)]
    # The gap has an id as well, so that a page that is cut right after it does not receive it twice.
    assert used.connect(cid, after_gap).take(4) == [("n", str(number)) for number in (7, 8, 9, 10)]


@pytest.mark.parametrize("wrong", ["nonsense", "-", "{token}-", "{token}-9", "{token}-1x", "{token}-" + "9" * 5000,
                                   "{token}-\u00b2", "{token}--1", "0123456789abcdef-1", "{other}"])  # fmt: skip
def test_id_that_was_never_given_out_is_a_gap(serve: Serve, wrong: str) -> None:
    """Fault: an error, or events of one conversation, or of one run of the server, taken for another's."""
    used = serve()
    cid, other = used.mount(), used.mount()
    for one in (cid, other):
        used.host.send(used.handle(one), "n", "1")
    page, elsewhere = used.connect(cid), used.connect(other)
    assert page.next() == elsewhere.next() == ("n", "1")
    token = page.last_id.partition("-")[0]
    headers = {"Last-Event-ID": wrong.format(token=token, other=elsewhere.last_id).encode()}
    with used.http.stream("GET", f"/stream/{cid}", headers=headers) as response:
        again = Page(response)
        assert again.next() == ("gap", '{"missed": null}')
        used.host.send(used.handle(cid), "n", "2")
        assert again.next() == ("n", "2")


def test_second_stream_replaces_the_first(serve: Serve) -> None:
    used = serve()
    cid = used.mount()
    first = used.connect(cid)
    used.host.send(used.handle(cid), "n", "1")
    assert first.next() == ("n", "1")
    second = used.connect(cid, first.last_id)
    assert first.rest() == [("bye", '{"reason": "replaced"}')]
    used.host.send(used.handle(cid), "n", "2")
    assert second.next() == ("n", "2")
    # That the first one is over must not count as a cut.
    wait_until(lambda: len(used.host._responses) == 1)
    assert used.ours(cid) == []


def test_stream_that_does_not_come_back_ends_the_conversation(serve: Serve) -> None:
    used = serve(registry="virtual", grace_seconds=30)
    registry: Any = used.registry
    cid = used.mount()
    with used.stream(cid) as page:
        used.host.send(used.handle(cid), "n", "1")
        page.next()
    used.wait_for_cut(cid)
    registry.advance(29_999)
    with used.stream(cid, page.last_id):
        wait_until(lambda: used.ours(cid) == [])
    used.wait_for_cut(cid)
    registry.advance(29_999)
    assert used.ours(cid) == ["gone"]
    registry.advance(1)
    used.nothing_is_left()
    assert used.status(cid) == 404
    assert registry.stats() == stube.Stats(accepted=3, delivered=1, cancelled=2)


def test_grace_timer_that_has_begun_decides_against_the_stream(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault (race 2): a stream is attached to a conversation that ends in the same moment, and is not told."""
    used = serve(registry="virtual", grace_seconds=30)
    registry: Any = used.registry
    cid = used.mount()
    with used.stream(cid):
        pass
    used.wait_for_cut(cid)
    answers: list[int] = []
    original = used.sessions.due

    def connect_meanwhile(cid: str, event: stube.Event) -> None:
        answers.append(used.status(cid))
        original(cid, event)

    monkeypatch.setattr(used.sessions, "due", connect_meanwhile)
    registry.advance(30_000)
    assert answers == [404]
    used.nothing_is_left()


def test_full_registry_ends_the_conversation_at_its_cut(serve: Serve) -> None:
    """Fault: a conversation without a stream and without the timer that would end it."""
    used = serve(registry="memory://?max_pending=1")
    cid = used.mount()
    handle = used.handle(cid)
    with used.stream(cid):
        handle.schedule("late", 3_600_000)
    wait_until(lambda: handle.ended)
    used.nothing_is_left()


def test_full_registry_opens_no_conversation(serve: Serve) -> None:
    used = serve(registry="memory://?max_pending=1")
    used.mount()
    with pytest.raises(stube.RegistryFull):
        used.host.open("flow")
    assert len(used.host.conversations) == 1 == len(used.sessions)


# The page that never connects


def test_page_that_never_connects_is_swept(serve: Serve) -> None:
    used = serve(registry="virtual", sweep_seconds=10)
    registry: Any = used.registry
    cid = used.mount()
    registry.advance(9_999)
    assert used.ours(cid) == ["sweep"]
    registry.advance(1)
    used.nothing_is_left()
    assert used.status(cid) == 404
    assert registry.stats() == stube.Stats(accepted=1, delivered=1)


def test_sweep_that_has_begun_leaves_the_conversation_to_the_stream(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault (race 1): the sweep ends what has just connected. The baton was the stream's."""
    used = serve(registry="virtual", sweep_seconds=10)
    registry: Any = used.registry
    cid = used.mount()
    original = used.sessions.due

    def connect_meanwhile(cid: str, event: stube.Event) -> None:
        used.connect(cid)
        original(cid, event)

    monkeypatch.setattr(used.sessions, "due", connect_meanwhile)
    registry.advance(10_000)
    assert not used.handle(cid).ended
    assert used.host.send(used.handle(cid), "n", "1")


def test_sweep_that_took_the_baton_leaves_the_stream_outside(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault (race 1): the stream takes the missing baton for a boot long ago."""
    used = serve(registry="virtual", sweep_seconds=10)
    registry: Any = used.registry
    cid = used.mount()
    handle = used.handle(cid)
    answers: list[int] = []

    def end_late(self: stube.Conversation) -> None:
        monkeypatch.undo()
        answers.append(used.status(cid))
        self.end()

    monkeypatch.setattr(stube.Conversation, "end", end_late)
    registry.advance(10_000)
    assert (answers, handle.ended) == ([404], True)
    used.nothing_is_left()


# The end, from anywhere


def test_handler_that_ends_its_conversation_is_heard_to_the_end(serve: Serve, backend: str) -> None:
    """Fault: the last words of a conversation are lost, or the farewell comes only with a heartbeat."""

    def dispatch(cid: str, event: stube.Event) -> None:
        conversation = used.handle(cid)
        for number in range(50):
            used.host.send(conversation, "n", str(number))
        conversation.end()
        assert used.host.send(conversation, "n", "too late") is False

    used = serve(dispatch, lambda conversation, flow_id: conversation.schedule("go", 0) and None, registry=backend)
    page = used.connect(used.mount())
    assert page.rest() == [("n", str(number)) for number in range(50)] + [("bye", '{"reason": "ended"}')]
    assert used.registry.settle(PROMPT)
    used.nothing_is_left()


@pytest.mark.parametrize("connected", [True, False])
def test_reset_of_the_registry_ends_its_conversations(serve: Serve, connected: bool) -> None:
    """Fault: a page whose conversation the registry has forgotten stays connected forever."""
    used = serve(heartbeat_seconds=0.05, sweep_seconds=0.1, grace_seconds=0.1, registry="virtual")
    cid = used.mount()
    handle = used.handle(cid)
    pages = [used.connect(cid)] if connected else []
    for page in pages:
        used.host.send(handle, "n", "1")
        page.next()
    used.registry.reset_state()
    assert [page.rest() for page in pages] == [[("bye", '{"reason": "ended"}')]] * len(pages)
    wait_until(lambda: handle.ended)
    used.nothing_is_left()


def test_conversation_that_lost_its_grace_timer_is_ended(serve: Serve) -> None:
    """Fault: the grace timer is among them, and the page never comes back."""
    used = serve(heartbeat_seconds=0.05, grace_seconds=0.05, registry="virtual")
    cid = used.mount()
    handle = used.handle(cid)
    with used.stream(cid):
        pass
    used.wait_for_cut(cid)
    assert handle.cancel_timers() == 1
    wait_until(lambda: handle.ended)
    used.nothing_is_left()


def test_overdue_conversation_whose_timer_is_still_to_come_lives_on(serve: Serve) -> None:
    """Fault: real time ends what the registry's clock, here a virtual one, does not end yet."""
    used = serve(heartbeat_seconds=0.02, sweep_seconds=0.02, registry="virtual")
    cid = used.mount()
    looked = threading.Event()
    original = used.registry.inspect

    def inspect(cid: str | None = None) -> dict[str, stube.ConversationInfo]:
        if threading.current_thread() is not threading.main_thread():
            looked.set()
        return original(cid)

    used.registry.inspect = inspect  # type: ignore[method-assign]
    assert looked.wait(PROMPT)
    assert used.ours(cid) == ["sweep"]
    assert not used.handle(cid).ended


def test_nothing_of_an_ended_conversation_is_left_anywhere(serve: Serve, backend: str) -> None:
    """Fault: a buffer, a session or a flow that is reachable after the end."""

    class Flow:
        pass

    used = serve(registry=backend)
    empty = used.registry.sizes()  # type: ignore[attr-defined]
    watched: list[weakref.ref[Any]] = []
    pages: list[Page] = []
    for kind in ("never connected", "connected", "cut"):
        conversation = used.host.open(Flow())
        flow = conversation.take_flow()
        watched.append(weakref.ref(flow))
        conversation.put_flow(flow)
        del flow
        used.host.send(conversation, "n", "x" * 1000)
        if kind == "connected":
            pages.append(used.connect(conversation.cid))
            pages[0].next()
        elif kind == "cut":
            with used.stream(conversation.cid):
                pass
            used.wait_for_cut(conversation.cid)
    buffers = [session._buffer for session in used.sessions._sessions.values()]
    for conversation in used.host.conversations:
        conversation.end()
    assert pages[0].rest() == [("bye", '{"reason": "ended"}')]
    del conversation
    wait_until(lambda: not used.host._responses)
    used.nothing_is_left()
    gc.collect()
    assert [one for one in watched if one() is not None] == []
    # Nobody but this list holds the buffers.
    assert [len(gc.get_referrers(one)) for one in buffers] == [1, 1, 1]
    assert used.registry.sizes() == empty  # type: ignore[attr-defined]


# Many, and slow ones


def test_two_hundred_conversations_half_of_them_cut_and_resumed(serve: Serve, backend: str) -> None:
    """Fault: an event lost, doubled, out of order or in another's stream when many are cut at the same time."""
    rounds = 40

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        conversation.schedule(("tick", 1), 5)

    def dispatch(cid: str, event: stube.Event) -> None:
        conversation = used.host.conversations.get(cid)
        if conversation is not None:
            used.host.send(conversation, "tick", json.dumps([cid, event.payload]))
            if event.payload < rounds:
                conversation.schedule(("tick", event.payload + 1), 5)

    used = serve(dispatch, boot, registry=backend)

    async def play(client: Any, number: int) -> tuple[str, list[list[Any]]]:
        cid = (await client.get("/")).text
        seen: list[list[Any]] = []
        last_id = ""
        while len(seen) < rounds:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            async with client.stream("GET", f"/stream/{cid}", headers=headers) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    field, _, value = line.partition(": ")
                    if field == "id":
                        last_id = value
                    elif field == "event":
                        assert value == "tick"
                    elif field == "data":
                        seen.append(json.loads(value))
                        if len(seen) == rounds or (number % 2 and len(seen) % 15 == 0):
                            break
        assert (await client.post(f"/leave/{cid}")).status_code == 204
        return cid, seen

    async def all_of_them() -> list[tuple[str, list[list[Any]]]]:
        async def one(number: int) -> tuple[str, list[list[Any]]]:
            # A pool of its own, as a browser has one.
            async with httpx.AsyncClient(base_url=used.server.url, timeout=60, trust_env=False, verify=False) as client:
                return await play(client, number)

        return await asyncio.gather(*(one(number) for number in range(200)))

    for cid, seen in asyncio.run(all_of_them()):
        assert seen == [[cid, number] for number in range(1, rounds + 1)]
    assert used.registry.settle(PROMPT)
    used.nothing_is_left()


@contextmanager
def page_that_does_not_read(used: Served, cid: str) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PROMPT)
        connection.connect((used.http.base_url.host, used.http.base_url.port))
        connection.sendall(f"GET /stream/{cid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def send_much(used: Served, cid: str) -> None:
    """More than what the kernel takes on its way, and more events than the buffer holds."""
    for _ in range(40):
        used.host.send(used.handle(cid), "n", "x" * 1_000_000)


def test_page_that_reads_too_slowly_is_cut_and_comes_back_to_a_gap(serve: Serve) -> None:
    """Fault: memory grows with what a slow page does not read, or it misses events and never hears of it."""
    used = serve(buffer_events=4, send_seconds=60)
    cid = used.mount()
    with page_that_does_not_read(used, cid) as connection:
        send_much(used, cid)
        assert len(used.sessions._sessions[cid]._buffer) == 4
        received = b""
        while b"event: bye" not in received[-4096:]:
            chunk = connection.recv(1 << 20)
            assert chunk, "it ends without a farewell"
            received += chunk
    assert received.rstrip(b"\r\n0").endswith(b'data: {"reason": "behind"}')
    last_id = received.rpartition(b"id: ")[2].partition(b"\r\n")[0].decode()
    wrote = received.count(b"event: n")
    assert 0 < wrote < 36
    used.wait_for_cut(cid)
    page = used.connect(cid, last_id)
    assert page.next() == ("gap", json.dumps({"missed": 36 - wrote}))
    assert [name for name, _ in page.take(4)] == ["n"] * 4


def test_page_that_never_reads_is_given_up(serve: Serve) -> None:
    used = serve(buffer_events=4, send_seconds=0.1)
    cid = used.mount()
    with page_that_does_not_read(used, cid):
        send_much(used, cid)
        used.wait_for_cut(cid)
        assert not used.host._responses
        # What uvicorn holds of it is the socket's, which closes with the page.


def test_end_of_a_conversation_whose_page_does_not_read_is_bounded(serve: Serve) -> None:
    """Fault: a page that reads now and then keeps the buffer of an ended conversation for hours."""
    used = serve(buffer_events=40, send_seconds=60, drain_seconds=0.2)
    cid = used.mount()
    with page_that_does_not_read(used, cid):
        send_much(used, cid)
        used.host.end(cid)
        wait_until(lambda: not used.host._responses)
    used.nothing_is_left()


# Sending


def test_send_carries_the_text_as_it_is(serve: Serve) -> None:
    used = serve()
    cid = used.mount()
    page = used.connect(cid)
    for text in ("", "<b>&amp;</b>", "two\nlines", "\u2603 \U0001f600", " leading", ": no comment"):
        assert used.host.send(used.handle(cid), "n", text) is True
        assert page.next() == ("n", text)


def test_send_refuses_what_no_stream_can_carry(serve: Serve) -> None:
    """Fault: it is found out in the response, which dies of it, at every reconnect again."""
    used = serve()
    conversation = used.handle(used.mount())
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (1, "", TypeError, "event must be a str, not 1. Convert it, for example with json.dumps."),
        ("n", {"a": 1}, TypeError, "data must be a str, not {'a': 1}. Convert it, for example with json.dumps."),
        ("", "", ValueError, "event must be a name on one line, not ''. Put the rest into the data."),
        ("a\nb", "", ValueError, r"event must be a name on one line, not 'a\nb'. Put the rest into the data."),
        ("a\rb", "", ValueError, r"event must be a name on one line, not 'a\rb'. Put the rest into the data."),
        ("bye", "", ValueError, "The event name 'bye' is the stream's own. Choose another name."),
        ("gap", "", ValueError, "The event name 'gap' is the stream's own. Choose another name."),
        ("n", "a\ud83d", ValueError, "has half a surrogate pair"),
    ]
    for event, data, error, message in wrong:
        with pytest.raises(error) as caught:
            used.host.send(conversation, event, data)
        assert message in str(caught.value)
    assert len(used.sessions._sessions[conversation.cid]._buffer) == 0


def test_send_does_not_reach_a_successor_of_the_same_name(serve: Serve) -> None:
    """Fault: a handler that outlives its conversation writes into the next one."""
    used = serve()
    old = used.handle(used.mount())
    old.end()
    successor = used.host.conversations.open(old.cid)
    assert used.host.send(old, "n", "1") is False
    assert used.host.send(successor, "n", "1") is False


def test_send_is_refused_from_the_first_moment_of_an_end(serve: Serve) -> None:
    """Fault: between the end and the news of it an event is taken, for one that has ended or for its successor."""
    used = serve()
    conversation = used.handle(used.mount())
    taken: list[bool] = []
    original: Any = used.host.conversations.on_end

    def on_end(ended: stube.Conversation) -> None:
        successor = used.host.conversations.open(ended.cid)
        taken.extend(used.host.send(one, "n", "1") for one in (ended, successor))
        original(ended)

    used.host.conversations.on_end = on_end
    conversation.end()
    assert taken == [False, False]
    assert len(used.sessions) == 0


def test_events_of_concurrent_senders_keep_the_order_of_each(serve: Serve) -> None:
    """Fault: a number given twice, or a stream that sleeps on a full buffer."""
    used = serve(buffer_events=10_000)
    cid = used.mount()
    handle = used.handle(cid)
    page = used.connect(cid)

    def send(thread: int) -> None:
        for number in range(500):
            assert used.host.send(handle, str(thread), str(number))

    with ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, thread) for thread in range(8)]
        received = page.take(4000)
        for one in sending:
            one.result(PROMPT)
    for thread in range(8):
        assert [data for name, data in received if name == str(thread)] == [str(number) for number in range(500)]


# Shutdown


def test_server_that_stops_tells_its_streams_and_is_not_held_up(serve: Serve, backend: str) -> None:
    """Fault: uvicorn waits forever for open streams, because the lifespan does not hear of the stop before."""
    used = serve(registry=backend)
    pages = [used.connect(used.mount()) for _ in range(20)]
    used.mount()
    took = used.server.stop()
    assert [page.rest() for page in pages] == [[("bye", '{"reason": "shutdown"}')]] * 20
    # Two looks at should_exit, uvicorn's and the host's, of a tenth of a second each, and what uvicorn sleeps itself:
    # 0.3 s on an idle machine. Without the farewell the server would wait forever.
    assert took < PROMPT / 2
    assert len(used.host.conversations) == 0
    with pytest.raises(stube.RegistryClosed):
        used.registry.publish("room", "anybody?")


def test_server_that_stops_after_so_many_requests_is_not_held_up() -> None:
    """Fault: only a signal is noticed."""
    host = Host(no_dispatch, no_boot, registry="memory")
    server = Server(application(host), limit_max_requests=2)
    server.start()
    with ExitStack() as stack:
        used = Served(host, server, stack)
        page = used.connect(used.mount())
        used.mount()  # a stream counts when it is over
        assert page.rest() == [("bye", '{"reason": "shutdown"}')]
    wait_until(lambda: not server.alive)


def test_stream_that_comes_during_a_shutdown_is_sent_away(serve: Serve) -> None:
    used = serve()
    cid = used.mount()
    page = used.connect(cid)
    used.host.close_streams()
    assert page.rest() == [("bye", '{"reason": "shutdown"}')]
    assert used.status(cid) == 503
    with pytest.raises(stube.RegistryClosed, match="The host is shutting down"):
        used.host.open("flow")


def test_shutdown_that_comes_while_a_page_is_opened_leaves_nothing_of_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault (race 4): a conversation is opened after the shutdown has ended all others, and stays."""
    used = serve()
    original = used.sessions._arm

    def arm_meanwhile(*arguments: Any) -> None:
        original(*arguments)
        used.host.close_streams()

    monkeypatch.setattr(used.sessions, "_arm", arm_meanwhile)
    with pytest.raises(stube.RegistryClosed, match="The host is shutting down"):
        used.host.open("flow")
    used.nothing_is_left()


def test_end_after_the_loop_has_closed_is_silent() -> None:
    """Fault: a thread that ends a conversation while the lifespan ends gets an error about a loop that is gone."""
    ended: list[stube.Conversation] = []
    loop = asyncio.new_event_loop()
    with stube.create_registry("virtual") as registry:
        sessions = Sessions(
            registry,
            loop,
            ended.append,
            sweep_seconds=10,
            grace_seconds=10,
            heartbeat_seconds=10,
            buffer_events=10,
        )
        conversation = sessions.open("flow")
        loop.close()
        conversation.end()
        sessions.close()
        assert ended == [conversation]
        assert len(sessions) == 0
        assert registry.inspect() == {}


def test_topics_of_the_host_are_no_way_to_end_a_conversation(serve: Serve) -> None:
    """Fault: a message on a topic that is the host's own is taken for one of its timers."""
    used = serve()
    cid = used.mount()
    page = used.connect(cid)
    assert sum(used.registry.publish(topic, "gone") for topic in used.registry.subscriptions()) == 1
    assert used.registry.settle(PROMPT)
    assert used.host.send(used.handle(cid), "n", "1")
    assert page.next() == ("n", "1")


def test_two_applications_in_one_process_stop_each_for_itself(serve: Serve) -> None:
    """Fault: one server's end ends the other's streams, as what is shared in the process would."""
    first, second = serve(), serve()
    cid = second.mount()
    stays = second.connect(cid)
    leaves = first.connect(first.mount())
    first.server.stop()
    assert leaves.rest() == [("bye", '{"reason": "shutdown"}')]
    second.host.send(second.handle(cid), "n", "still here")
    assert stays.next() == ("n", "still here")


def test_two_servers_on_one_loop_stop_each_for_itself() -> None:
    async def scenario() -> tuple[str, str]:
        servers, listeners, hosts, tasks = [], [], [], []
        for _ in range(2):
            host = Host(no_dispatch, no_boot, registry="memory")
            config = uvicorn.Config(application(host), log_config=None, ws="none", lifespan="on")
            servers.append(uvicorn.Server(config))
            servers[-1].capture_signals = ExitStack  # the signals are the test's
            listeners.append(socket.create_server(("127.0.0.1", 0)))
            hosts.append(host)
            tasks.append(asyncio.create_task(servers[-1].serve([listeners[-1]])))
        while not all(server.started for server in servers):
            await asyncio.sleep(0.01)
        received = ["", ""]
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=PROMPT) as client:

            async def read(number: int) -> None:
                url = f"http://127.0.0.1:{listeners[number].getsockname()[1]}"
                cid = (await client.get(url)).text
                async with client.stream("GET", f"{url}/stream/{cid}") as response:
                    hosts[number].send(hosts[number].conversations.open(cid), "n", "hello")
                    async for text in response.aiter_text():
                        received[number] += text

            readers = [asyncio.create_task(read(number)) for number in range(2)]
            while not all("hello" in text for text in received):
                await asyncio.sleep(0.01)
            ports = [listener.getsockname()[1] for listener in listeners]
            assert len(set(ports)) == 2
            servers[0].should_exit = True
            await tasks[0]
            await readers[0]
            after_the_first = received[1]
            servers[1].should_exit = True
            await asyncio.gather(*tasks, *readers)
        assert "shutdown" in received[0]
        return after_the_first, received[1]

    async def bounded() -> tuple[str, str]:
        async with asyncio.timeout(2 * PROMPT):
            return await scenario()

    before, after = asyncio.run(bounded())
    assert "bye" not in before
    assert "shutdown" in after


def test_state_left_behind_by_another_server_cuts_no_stream(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: sse-starlette never forgets that some server of the process was told to stop."""
    monkeypatch.setattr(AppStatus, "should_exit", True)
    used = serve(heartbeat_seconds=0.05)
    page = used.connect(used.mount())
    frames = page.frames()
    assert [next(frames) for _ in range(3)] == [("", "heartbeat")] * 3


def test_under_an_unknown_server_the_word_of_the_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> Callable[[], bool]:
        return stopping()

    has_begun = asyncio.run(ask())
    assert not has_begun()
    monkeypatch.setattr(AppStatus, "should_exit", True)
    assert has_begun()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_stops_a_server_with_open_streams(name: str, tmp_path: Path) -> None:
    program = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from stube.asgi import Host
host = Host(lambda cid, event: None, lambda conversation, flow_id: None)
async def page(request): return PlainTextResponse(host.open("flow").cid)
async def stream(request): return host.stream(request.path_params["cid"])
app = Starlette(routes=[Route("/", page), Route("/stream/{cid}", stream)], lifespan=host.lifespan)
uvicorn.run(app, fd=int(sys.argv[1]), log_config=None, ws="none")
"""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stderr=subprocess.PIPE,
                env={**os.environ, "STUBE_REGISTRY": "memory"},
            )
        )
        stack.callback(lambda: child.kill() if child.poll() is None else None)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # 30 s: a Python that starts and imports a server.
        http = stack.enter_context(httpx.Client(base_url=url, timeout=30, trust_env=False))
        page = Page(stack.enter_context(http.stream("GET", f"/stream/{http.get('/').text}")))
        child.send_signal(getattr(signal, name))
        assert page.rest() == [("bye", '{"reason": "shutdown"}')]
        _, errors = child.communicate(timeout=PROMPT)
    assert child.returncode in (0, -getattr(signal, name))
    assert b"Exception in" not in errors, errors
    assert b"still runs" not in errors


def test_endless_handler_delays_the_shutdown_by_drain_seconds_at_most(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: the wait has no bound, or blocks the loop, so that an open response is not sent during it."""
    entered, release = threading.Event(), threading.Event()

    def dispatch(cid: str, event: stube.Event) -> None:
        entered.set()
        release.wait(3 * PROMPT)

    turns: list[float] = []

    @asynccontextmanager
    async def turning(app: Any) -> AsyncIterator[None]:
        async def turn() -> None:
            while True:
                turns.append(time.monotonic())
                await asyncio.sleep(0.01)

        task = asyncio.create_task(turn())
        yield
        task.cancel()

    used = serve(dispatch, lambda conversation, flow_id: conversation.schedule("go", 0) and None,
                 drain_seconds=0.5, lifespan=turning)  # fmt: skip
    used.connect(used.mount())
    assert entered.wait(PROMPT)
    try:
        begin = time.monotonic()
        took = used.server.stop()
        assert 0.5 < took < PROMPT / 2
        # The loop turned while the registry was waited for.
        assert len([at for at in turns if at > begin + 0.3]) > 10
        assert "A handler still runs 0.5 seconds after the host began to drain." in caplog.text
    finally:
        release.set()


@pytest.mark.parametrize("kind", ["memory", "asyncio"])
def test_handler_that_is_under_way_is_waited_for(serve: Serve, kind: str) -> None:
    """Fault: the registry is closed under a handler, or the loop blocks although the handler needs it."""
    entered, finished = threading.Event(), threading.Event()

    def dispatch(cid: str, event: stube.Event) -> None:
        entered.set()
        time.sleep(0.3)  # longer than the streams take to end
        finished.set()

    async def dispatch_awaiting(cid: str, event: stube.Event) -> None:
        entered.set()
        await asyncio.sleep(0.3)
        finished.set()

    used = serve(dispatch if kind == "memory" else dispatch_awaiting, registry=kind, drain_seconds=PROMPT / 2)
    registry: Any = used.registry
    closed: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(registry, name)

        def note(*timeout: float) -> Any:
            closed.append(name)
            return original(*timeout)

        return note

    for name in {"close", "aclose"} & set(dir(registry)):
        setattr(registry, name, noting(name))
    registry.schedule_event(cid="job", instance_id="main", delay_ms=0, event="go")
    assert entered.wait(PROMPT)
    used.server.stop()
    assert finished.is_set()
    assert closed[0] == ("close" if kind == "memory" else "aclose")
    assert used.registry.stats() == stube.Stats(accepted=1, delivered=1)


# Lifespans


def test_host_is_found_on_the_application(serve: Serve) -> None:
    assert serve().http.get("/state").json() == {"same": True}


def test_an_application_without_a_host_has_no_streams() -> None:
    """Fault: an AttributeError of Starlette's, which says nothing of what to do."""
    request = Request({"type": "http", "app": Starlette()})
    with pytest.raises(RuntimeError, match="Give its lifespan to the application"):
        conversation_stream(request, "c1")


def test_application_is_told_of_each_end_once(serve: Serve) -> None:
    """Fault: what an application keeps of a conversation outlives it, or a hook of its own replaces the host's."""
    ended: list[str] = []
    used = serve(on_end=lambda conversation: ended.append(conversation.cid))
    cids = [used.mount() for _ in range(3)]
    with used.stream(cids[0]) as page:
        used.host.end(cids[0])
        used.host.end(cids[0])
        assert page.rest()[-1][0] == "bye"
    used.handle(cids[1]).end()
    assert ended == cids[:2]
    used.server.stop()
    assert ended == cids


def test_own_lifespan_surrounds_the_conversations(serve: Serve) -> None:
    """Fault: what handlers need is gone while they still run, or the registry is not there yet at the start."""
    order: list[str] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        order.append(f"begin, {used_host.registry.stats().accepted} accepted")
        used_host.registry.schedule_event(cid="jobs", instance_id="main", delay_ms=0, event="job")
        yield {"mine": 7}
        try:
            used_host.registry.publish("t", 1)
        except stube.RegistryClosed:
            order.append(f"end, {len(used_host.conversations)} live")

    arrived = threading.Event()
    used_host = Host(lambda cid, event: arrived.set(), no_boot, registry="memory", lifespan=own)
    server = Server(application(used_host))
    server.start()
    with ExitStack() as stack:
        used = Served(used_host, server, stack)
        assert arrived.wait(PROMPT)
        assert used.http.get("/state").json() == {"same": True, "mine": 7}
        used.mount()
        server.stop()
    assert order == ["begin, 0 accepted", "end, 0 live"]


def test_lifespan_that_wraps_ours_ends_while_conversations_live(serve: Serve) -> None:
    order: list[int] = []

    def app(host: Host) -> Starlette:
        @asynccontextmanager
        async def wrapping(app: Starlette) -> AsyncIterator[Any]:
            async with host.lifespan(app) as state:
                yield state
                order.append(len(host.conversations))

        return application(host, lifespan=wrapping)

    used = serve(app=app)
    used.mount()
    used.server.stop()
    assert order == [1]
    assert len(used.host.conversations) == 0


@pytest.mark.parametrize("where", ["own", "wrapping"])
def test_lifespan_that_fails_at_the_start_closes_the_registry(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: a thread of the registry outlives an application that never came up."""

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        host.registry.schedule_event(cid="c", instance_id="i", delay_ms=3_600_000, event="late")
        fail(app)
        yield

    @asynccontextmanager
    async def wrapping(app: Starlette) -> AsyncIterator[Any]:
        async with host.lifespan(app):
            fail(app)
            yield

    host = Host(no_dispatch, no_boot, registry="memory", lifespan=own if where == "own" else None)
    server = Server(application(host, **({"lifespan": wrapping} if where == "wrapping" else {})))
    server.start()
    server.stop()
    assert not server.uvicorn.started
    assert "no database" in caplog.text
    assert host.registry.stats().timers == 0
    with pytest.raises(stube.RegistryClosed):
        host.registry.publish("t", 1)
    with pytest.raises(RuntimeError, match="The host has not started"):
        host.open("flow")


def test_lifespan_that_fails_at_the_end_has_drained(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError("at the end")

    used = serve(lifespan=own)
    used.mount()
    used.server.stop()
    assert "at the end" in caplog.text
    assert len(used.host.conversations) == 0
    with pytest.raises(stube.RegistryClosed):
        used.registry.publish("t", 1)


@pytest.mark.parametrize("kind", ["memory", "asyncio"])
def test_registry_that_does_not_settle_is_closed_all_the_same(kind: str) -> None:
    """Fault: what settling raises, as that of a virtual clock may, leaves the registry open."""
    host = Host(no_dispatch, no_boot, registry=kind)
    name = "settled" if kind == "asyncio" else "settle"

    async def run() -> None:
        async with host.lifespan(application(host)):
            setattr(host.registry, name, fail)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    with pytest.raises(stube.RegistryClosed):
        host.registry.publish("t", 1)


def test_registry_that_was_handed_in_is_not_closed_and_forgets_the_host(serve: Serve) -> None:
    seen: list[str] = []
    with stube.create_registry("virtual") as registry:
        used = serve(lambda cid, event: seen.append(event.name), registry=registry)
        assert used.registry is registry
        used.mount()
        registry.schedule_event(cid="c", instance_id="i", delay_ms=1, event="before")
        registry.advance(1)
        used.server.stop()
        registry.schedule_event(cid="c", instance_id="i", delay_ms=1, event="after")
        registry.advance(1)
        assert seen == ["before"]
        assert registry.inspect() == {}


def test_host_runs_again_with_a_registry_of_its_own_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", "sharded://?shards=2")
    host = Host(no_dispatch, no_boot)
    app = application(host)
    registries = []

    async def run() -> None:
        async with host.lifespan(app):
            registries.append(host.registry)
            host.open("flow")
            with pytest.raises(RuntimeError, match="This host runs already"):
                async with host.lifespan(app):
                    pass
            assert len(host.conversations) == 1
        assert len(host.conversations) == 0

    asyncio.run(run())
    asyncio.run(run())
    assert [type(one).__name__ for one in registries] == ["ShardedRegistry"] * 2
    assert registries[0] is not registries[1]


def test_coroutine_dispatch_is_refused_at_the_start_if_nothing_awaits_it() -> None:
    """Fault: our wrapping hides it from the registry, and every delivery fails instead."""

    async def dispatch(cid: str, event: stube.Event) -> None: ...

    class Handlers:
        async def __call__(self, cid: str, event: stube.Event) -> None: ...

    async def run(dispatch: Any) -> None:
        host = Host(dispatch, no_boot, registry="memory")
        async with host.lifespan(application(host)):
            pass

    for one in (dispatch, Handlers()):
        with pytest.raises(TypeError, match='Use the backend "asyncio"'):
            asyncio.run(run(one))


@pytest.mark.parametrize("kind", ["function", "coroutine function", "object", "function of a coroutine"])
def test_dispatch_of_either_kind_runs_on_the_loop_of_an_async_registry(serve: Serve, kind: str) -> None:
    """Fault: a coroutine is never awaited, or the host's own events are lost."""
    where: list[object] = []

    def dispatch(cid: str, event: stube.Event) -> None:
        where.append(asyncio.get_running_loop())
        used.host.send(used.handle(cid), event.name, "")

    async def dispatch_awaiting(cid: str, event: stube.Event) -> None:
        await asyncio.sleep(0)
        dispatch(cid, event)

    class Handlers:
        async def __call__(self, cid: str, event: stube.Event) -> None:
            await dispatch_awaiting(cid, event)

    kinds: dict[str, Any] = {
        "function": dispatch,
        "coroutine function": dispatch_awaiting,
        "object": Handlers(),
        "function of a coroutine": lambda *arguments: dispatch_awaiting(*arguments),
    }

    def boot(conversation: stube.Conversation, flow_id: Any) -> None:
        where.append(asyncio.get_running_loop())
        conversation.schedule("tick", 0)

    used = serve(kinds[kind], boot, registry="asyncio", grace_seconds=0)
    cid = used.mount()
    handle = used.handle(cid)
    with used.stream(cid) as page:
        assert page.next() == ("tick", "")
    wait_until(lambda: handle.ended)
    assert len(set(map(id, where))) == 1
    used.nothing_is_left()


def test_host_refuses_arguments_of_no_use() -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dispatch": 1}, TypeError, "dispatch must be callable, not 1. Pass a function."),
        ({"boot": None}, TypeError, "boot must be callable, not None. Pass a function."),
        ({"lifespan": 1}, TypeError, "lifespan must be callable, not 1. Pass a function."),
        ({"sweep_seconds": "1"}, TypeError,
         "sweep_seconds must be a number of seconds, not '1'. Pass seconds as a number."),
        ({"grace_seconds": -1}, ValueError,
         "grace_seconds must be 0 or more and finite, not -1. Pass such a number of seconds."),
        ({"heartbeat_seconds": 0}, ValueError,
         "heartbeat_seconds must be more than 0 and finite, not 0. Pass such a number of seconds."),
        ({"drain_seconds": float("inf")}, ValueError,
         "drain_seconds must be 0 or more and finite, not inf. Pass such a number of seconds."),
        ({"send_seconds": True}, TypeError,
         "send_seconds must be a number of seconds, not True. Pass seconds as a number."),
        ({"buffer_events": 0}, ValueError, "buffer_events must be 1 or more, not 0. Pass how many events to keep."),
        ({"buffer_events": 1.5}, TypeError, "buffer_events must be an int, not 1.5. Pass a whole number."),
    ]  # fmt: skip
    for options, error, message in wrong:
        with pytest.raises(error) as caught:
            Host(**{"dispatch": no_dispatch, "boot": no_boot, **options})
        assert str(caught.value) == message


def test_host_that_has_not_started_says_so() -> None:
    host = Host(no_dispatch, no_boot)
    asked: list[Callable[[], object]] = [lambda: host.registry, lambda: host.conversations, lambda: host.open("flow")]
    for ask in asked:
        with pytest.raises(RuntimeError, match=r"The host has not started\. Give its lifespan to the application"):
            ask()
    host.close_streams()


def test_missing_extra_is_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stube.asgi")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sse_starlette", None)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("stube.asgi")
    assert str(caught.value) == (
        "stube.asgi needs the package 'sse_starlette', which is not installed. "
        "Install what it needs with: pip install 'stube[asgi]'"
    )
