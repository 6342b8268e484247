"""The reference host application over real HTTP, and the self-check against registries with a fault."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import stube

NEEDED = "needs the extra 'demo': pip install 'stube[demo]'"
httpx = pytest.importorskip("httpx", reason=NEEDED)
for module in ("sse_starlette", "starlette", "uvicorn"):
    pytest.importorskip(module, reason=NEEDED)

from stube.demo import _panel, check, self_check, serve  # noqa: E402
from stube.demo._freezer import Freezer  # noqa: E402
from stube.demo._meter import Meter  # noqa: E402
from stube.demo._panel import name_of  # noqa: E402
from stube.demo.app import BODY_LIMIT, STEP_LIMIT_MS, TEXT_LIMIT, Demo, create_app  # noqa: E402
from stube.demo.server import running  # noqa: E402

ROOT = Path(__file__).parent.parent
LONG_MS = 3_600_000


class Events:
    """One connected stream, read event by event."""

    def __init__(self, response: Any) -> None:
        self._lines = response.iter_lines()
        self.last_id = ""

    def next(self, wanted: str) -> dict[str, Any]:
        """Return the next event of this kind; skip others."""
        while True:
            kind, data = self.any()
            if kind == wanted:
                return data
            assert kind != "bye", f"the stream ended before any {wanted!r}"

    def any(self) -> tuple[str, dict[str, Any]]:
        """Return the next event of any kind; afterwards `last_id` is its id."""
        event_id = kind = ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "id":
                event_id = value
            elif field == "event":
                kind = value
            elif field == "data":
                self.last_id = event_id
                return kind, json.loads(value)
        raise AssertionError("the stream ended without a farewell")

    def rest(self) -> list[str]:
        """Return the lines up to the end of the stream."""
        return list(self._lines)


class Browser:
    """The pages of one served application."""

    def __init__(self, url: str, registry: stube.Backend, demo: Demo, stack: ExitStack) -> None:
        self.registry = registry
        self.demo = demo
        self._stack = stack
        # Without a reference a stream would be garbage-collected, which closes its connection.
        self._connected: list[Events] = []
        # No read in these tests takes seconds; one that does is a failure.
        self.http = stack.enter_context(httpx.Client(base_url=url, timeout=5, trust_env=False))

    def mount(self) -> str:
        page = self.http.get("/").raise_for_status().text
        found = re.search(r'data-cid="([\w-]+)"', page)
        assert found is not None
        return found[1]

    @contextmanager
    def stream(self, cid: str, last_id: str = "") -> Iterator[Events]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.http.stream("GET", f"/stream/{cid}", headers=headers) as response:
            assert response.status_code == 200
            yield Events(response)

    def connect(self, cid: str, last_id: str = "") -> Events:
        """Open a stream that stays until the end of the test; `last_id` is the last event that the page has seen."""
        self._connected.append(self._stack.enter_context(self.stream(cid, last_id)))
        return self._connected[-1]

    def cuts(self) -> threading.Semaphore:
        """Return a semaphore that is released each time the host has noticed that a stream is cut."""
        cuts = threading.Semaphore(0)
        original = self.registry.schedule_event

        def schedule_event(**arguments: Any) -> stube.TimerHandle:
            handle = original(**arguments)
            if arguments["event"] == "gone":
                cuts.release()
            return handle

        # The wrapper only watches the operation.
        self.registry.schedule_event = schedule_event  # type: ignore[method-assign]
        return cuts

    def say(self, cid: str, text: str) -> Any:
        return self.http.post(f"/say/{cid}", json={"text": text})

    def timers(self, cid: str) -> list[str]:
        """Return the names of the conversation's timers, the next one first."""
        return [_name(timer.event) for timer in self.registry.inspect(cid)[cid].timers]

    def panel(self, cid: str, met: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return the conversation as the inspector shows it, as soon as it meets the condition."""
        end, held = time.monotonic() + 5, []
        while time.monotonic() < end:
            held = self.http.get("/registry").raise_for_status().json()["conversations"]
            for shown in held:
                if shown["name"] == name_of(cid) and met(shown):
                    return dict(shown)
        raise AssertionError(f"the inspector never showed it: {held}")


def _name(event: stube.EventSpec) -> str:
    return event if isinstance(event, str) else event[0]


@pytest.fixture
def browser() -> Iterator[Callable[..., Browser]]:
    """A function that serves the application on a registry and returns its `Browser`."""
    with ExitStack() as stack:

        def start(spec: str = "memory", *, max_pending: int = 1000, **times: float) -> Browser:
            registry = stack.enter_context(stube.create_registry(spec, max_pending=max_pending))
            waits = ("sweep_ms", "grace_ms", "tick_ms", "idle_ms", "freeze_ms")
            defaults: dict[str, float] = dict.fromkeys(waits, LONG_MS)
            app = create_app(registry, **{**defaults, **times})
            url = stack.enter_context(running(app))
            return Browser(url, registry, app.state.demo, stack)

        yield start


# The page


def test_page_needs_no_other_file_and_is_not_cached(browser: Callable[..., Browser]) -> None:
    answer = browser().http.get("/")
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "{{" not in answer.text
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|@import|url\(', answer.text) == []


def test_two_tabs_are_two_conversations(browser: Callable[..., Browser]) -> None:
    used = browser()
    assert len({used.mount(), used.mount()}) == 2
    assert used.registry.stats().pending_flows == 2


def test_healthz_answers(browser: Callable[..., Browser]) -> None:
    assert browser().http.get("/healthz").text == "ok\n"


# From the page to the stream, and back after a cut


def test_first_stream_takes_the_baton_and_boots_the_flow(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    held = used.registry.inspect()[cid]
    assert held.pending_flow
    assert used.timers(cid) == ["sweep"]
    assert used.connect(cid).any() == ("hello", {"name": name_of(cid)})
    held = used.registry.inspect()[cid]
    assert not held.pending_flow
    assert used.timers(cid) == ["tick", "idle"]
    # The other subscription is the host's, to a topic on which nothing is published.
    assert [held_on.topic for held_on in held.subscriptions if held_on.instance_id != "stube.asgi"] == ["room"]
    assert len(held.subscriptions) == 2


def test_clock_rearms_itself(browser: Callable[..., Browser]) -> None:
    used = browser(tick_ms=10)
    events = used.connect(used.mount())
    assert [events.next("tick")["number"] for _ in range(5)] == [1, 2, 3, 4, 5]


def test_page_that_never_connects_is_swept(browser: Callable[..., Browser]) -> None:
    used = browser(sweep_ms=20)
    cid = used.mount()
    assert used.registry.join(5)
    assert used.http.get(f"/stream/{cid}").status_code == 404
    assert used.registry.inspect() == {}
    assert len(used.demo.host.conversations) == 0


def test_sweep_that_comes_after_the_stream_ends_nothing(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    events = used.connect(cid)
    events.next("hello")
    # This is like a sweep that had already begun when the stream came.
    used.registry.schedule_event(cid=cid, instance_id="stube.asgi", delay_ms=0, event="sweep")
    assert used.registry.settle(5)
    assert used.say(cid, "still here").status_code == 202
    assert events.next("said")["text"] == "still here"


def test_cut_stream_resumes_where_the_clock_is(browser: Callable[..., Browser]) -> None:
    """Fault: the flow is booted anew, or a tick is lost or repeated around the cut."""
    used = browser(tick_ms=10)
    cid = used.mount()
    with used.stream(cid) as events:
        last = events.next("tick")["number"]
    again = used.connect(cid, events.last_id)
    assert [again.any() for _ in range(5)] == [("tick", {"number": last + step}) for step in range(1, 6)]
    used.say(cid, "back")
    assert again.next("said")["text"] == "back"


def test_messages_during_a_cut_arrive_afterwards(browser: Callable[..., Browser]) -> None:
    """Fault: messages that a cut page misses are not kept for it, or reach it twice or in another order."""
    used = browser()
    cid, other = used.mount(), used.mount()
    cuts = used.cuts()
    used.connect(other).next("hello")
    with used.stream(cid) as events:
        used.say(other, "before")
        events.next("said")
    assert cuts.acquire(timeout=5)
    said = ["first", "second", "third"]
    for text in said:
        assert used.say(other, text).json() == {"targets": 2}
    again = used.connect(cid, events.last_id)
    assert [again.any() for _ in said] == [("said", {"from": name_of(other), "text": text}) for text in said]


def test_page_that_misses_too_much_is_told_so(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    cuts = used.cuts()
    with used.stream(cid) as events:
        events.next("hello")
    assert cuts.acquire(timeout=5)
    for number in range(300):
        used.registry.publish("room", {"from": "", "text": str(number)})
    assert used.registry.settle(5)
    again = used.connect(cid, events.last_id)
    missed = again.next("gap")["missed"]
    assert missed > 0
    assert again.next("said")["text"] == str(missed)


def test_resuming_cancels_the_grace_timer(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    cuts = used.cuts()
    with used.stream(cid) as events:
        events.next("hello")
    assert cuts.acquire(timeout=5)
    assert used.timers(cid) == ["tick", "idle", "gone"]
    again = used.connect(cid, events.last_id)
    used.say(cid, "back")
    assert again.any()[0] == "said"  # and no second hello
    assert used.timers(cid) == ["tick", "idle"]


def test_stream_that_does_not_come_back_ends_the_conversation(browser: Callable[..., Browser]) -> None:
    used = browser(grace_ms=20)
    cid = used.mount()
    with used.stream(cid) as events:
        events.next("hello")
    # The clock's tick is far in the future, so nothing is pending only when the conversation has ended.
    assert used.registry.join(5)
    assert used.http.get(f"/stream/{cid}").status_code == 404
    assert used.registry.inspect() == {}


def test_second_stream_replaces_the_first(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    first = used.connect(cid)
    first.next("hello")
    second = used.connect(cid, first.last_id)
    assert first.next("bye") == {"reason": "replaced"}
    first.rest()
    used.say(cid, "to the second")
    # The second stream continues where the first one was: there is no second hello.
    assert second.any() == ("said", {"from": name_of(cid), "text": "to the second"})
    # The end of the first stream must not count as a cut.
    assert used.timers(cid) == ["tick", "idle"]


def test_head_does_not_take_the_baton(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    assert used.http.head(f"/stream/{cid}").status_code == 405
    assert used.registry.stats().pending_flows == 1
    assert used.connect(cid).any()[0] == "hello"


# The chat


@pytest.mark.parametrize("text", ["hello", "<b>&amp;</b>", "two\nlines", "\u2603 \U0001f600", "half \ud83d"])
def test_message_reaches_every_page_unchanged(browser: Callable[..., Browser], text: str) -> None:
    used = browser()
    speaker, listener = used.mount(), used.mount()
    streams = [used.connect(speaker), used.connect(listener)]
    answer = used.http.post(f"/say/{speaker}", content=json.dumps({"text": text}))
    assert (answer.status_code, answer.json()) == (202, {"targets": 2})
    for stream in streams:
        assert stream.next("said") == {"from": name_of(speaker), "text": text}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff", 422),
        (b"[" * (BODY_LIMIT - 1), 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"text": 5}', 422),
        (b'{"text": " \\n"}', 422),
        (json.dumps({"text": "x" * (TEXT_LIMIT + 1)}).encode(), 422),
        (b" " * (BODY_LIMIT + 1), 413),
    ],
)
def test_say_refuses_a_wrong_body(browser: Callable[..., Browser], body: bytes, status: int) -> None:
    used = browser()
    cid = used.mount()
    assert used.http.post(f"/say/{cid}", content=body).status_code == status
    assert used.registry.stats().accepted == 1  # the sweep


def test_silence_is_reported_and_a_message_restarts_its_timer(browser: Callable[..., Browser]) -> None:
    used = browser("virtual", idle_ms=60_000)
    cid = used.mount()
    events = used.connect(cid)
    used.http.post(f"/advance/{cid}", json={"ms": 40_000})
    used.say(cid, "still here")
    used.http.post(f"/advance/{cid}", json={"ms": 40_000})
    assert used.registry.inspect(cid)[cid].timers[0].remaining_ms == 20_000
    used.http.post(f"/advance/{cid}", json={"ms": 20_000})
    assert events.next("said")["text"] == "still here"
    assert events.next("idle") == {"minutes": 1}
    assert used.timers(cid) == ["tick"]
    assert used.registry.stats().delivered == 2  # the message, and one report of silence


# Frozen handlers


def test_frozen_handler_stalls_conversations_on_its_thread(browser: Callable[..., Browser]) -> None:
    """Fault: the freeze blocks the server instead of the handler, or the inspector does not show that another waits."""
    used = browser(tick_ms=20)
    cid, other = used.mount(), used.mount()
    events, others = used.connect(cid), used.connect(other)
    others.next("tick")
    assert used.http.post(f"/freeze/{cid}").status_code == 202
    assert events.next("frozen") == {"seconds": LONG_MS / 1000}
    assert used.panel(cid, lambda held: held["frozen"])["running"] == 1
    used.say(other, "anybody?")
    assert used.panel(other, lambda held: held["waiting_ms"] > 0)["queued"] == 1
    assert used.http.post(f"/thaw/{cid}").status_code == 204
    assert events.next("thawed")["seconds"] >= 0
    assert others.next("said")["text"] == "anybody?"
    used.panel(other, lambda held: held["waiting_ms"] == 0)


def test_frozen_handler_continues_after_the_bound(browser: Callable[..., Browser]) -> None:
    used = browser(freeze_ms=20)
    cid = used.mount()
    events = used.connect(cid)
    used.http.post(f"/freeze/{cid}")
    assert events.next("frozen") == {"seconds": 0.02}
    assert 0 <= events.next("thawed")["seconds"] < 5
    assert not used.demo._freezer.is_asked(cid)


def test_leaving_thaws_the_frozen_handler(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    events = used.connect(cid)
    used.http.post(f"/freeze/{cid}")
    events.next("frozen")
    assert used.http.post(f"/leave/{cid}").status_code == 204
    assert used.registry.settle(5)
    assert used.registry.inspect() == {}
    assert not used.demo._freezer.is_asked(cid)
    # The event "thawed" comes after the end, so it is sent to no page.
    assert events.any() == ("bye", {"reason": "ended"})


def test_host_ending_a_conversation_thaws_its_frozen_handler(browser: Callable[..., Browser]) -> None:
    """Fault: a frozen handler is thawed only when its page leaves, and not when the host or a thread ends it."""
    used = browser()
    cid, waiting = used.mount(), used.mount()
    events = used.connect(cid)
    used.connect(waiting).next("hello")
    used.http.post(f"/freeze/{cid}")
    events.next("frozen")
    used.http.post(f"/freeze/{waiting}")  # queued behind the other one, so it never begins
    for ends in (waiting, cid):
        used.demo.host.end(ends)
        assert not used.demo._freezer.is_asked(ends)
    assert used.registry.settle(5)
    assert used.registry.inspect() == {}


def test_freeze_that_is_taken_back_before_its_turn_never_begins(browser: Callable[..., Browser]) -> None:
    """Fault: a freeze that waits in the queue behind a frozen handler begins after its own thaw."""
    used = browser()
    cid, other = used.mount(), used.mount()
    events, others = used.connect(cid), used.connect(other)
    used.http.post(f"/freeze/{cid}")
    events.next("frozen")
    assert [used.http.post(f"/freeze/{other}").status_code for _ in range(2)] == [202, 202]
    used.http.post(f"/thaw/{other}")
    used.http.post(f"/thaw/{cid}")
    assert used.registry.settle(5)
    used.say(other, "never frozen")
    while (kind := others.any()[0]) != "said":
        assert kind == "hello"


def test_thaw_does_not_take_back_the_freeze_after_it() -> None:
    freezer = Freezer(LONG_MS)
    assert freezer.ask("c1")
    first = freezer.begin("c1")
    assert first is not None
    assert freezer.thaw("c1")
    assert freezer.ask("c1")
    freezer.end("c1", first)  # the first freeze ends late
    assert freezer.begin("c1") is not None


def test_stopping_the_server_thaws_a_frozen_handler() -> None:
    with stube.create_registry("memory") as registry:
        app = create_app(registry, freeze_ms=LONG_MS)
        with running(app) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
            used = re.search(r'data-cid="([\w-]+)"', http.get("/").text)
            assert used is not None
            with http.stream("GET", f"/stream/{used[1]}") as response:
                events = Events(response)
                http.post(f"/freeze/{used[1]}")
                events.next("frozen")
        assert registry.settle(5)


def test_frozen_handler_that_awaits_delays_no_other() -> None:
    """Fault: on a registry that awaits its dispatch the frozen handler blocks the loop."""

    async def scenario() -> None:
        with stube.create_registry("memory") as registry:
            app = create_app(registry, freeze_ms=LONG_MS)
            demo: Demo = app.state.demo
            async with demo.host.lifespan(app):
                frozen, other = demo.host.open("flow"), demo.host.open("flow")
                demo._freezer.ask(frozen.cid)
                freezing = asyncio.create_task(demo.dispatch_awaiting(frozen.cid, stube.Event("freezer", "freeze")))
                while not demo._freezer.is_frozen(frozen.cid):
                    await asyncio.sleep(0)
                await demo.dispatch_awaiting(other.cid, stube.Event("clock", "tick", 1, due=registry.now_ns))
                clocks = [timer for timer in registry.inspect(other.cid)[other.cid].timers if timer.event != "sweep"]
                assert [timer.event[1] for timer in clocks] == [2]
                assert not freezing.done()
                demo._freezer.thaw(frozen.cid)
                async with asyncio.timeout(5):
                    await freezing

    asyncio.run(scenario())


# A virtual clock


def test_virtual_time_moves_when_a_page_advances_it(browser: Callable[..., Browser]) -> None:
    used = browser("virtual", tick_ms=1000, grace_ms=5000)
    cid, lost = used.mount(), used.mount()
    events = used.connect(cid)
    cuts = used.cuts()
    with used.stream(lost) as stream:
        stream.next("hello")
    assert cuts.acquire(timeout=5)
    assert used.timers(lost) == ["tick", "gone", "idle"]
    answer = used.http.post(f"/advance/{cid}", json={"ms": 1_800_000})
    assert (answer.status_code, answer.json()) == (200, {"now_ms": 1_800_000})
    assert events.next("tick") == {"number": 1800}
    assert set(used.registry.inspect()) == {cid}
    panel = used.http.get("/registry").json()
    assert panel["deliveries"] == [1] * 60
    assert panel["lateness_ms"] == [0.0] * 60


def test_message_arrives_without_moving_the_virtual_clock(browser: Callable[..., Browser]) -> None:
    used = browser("virtual")
    cid = used.mount()
    events = used.connect(cid)
    assert used.say(cid, "hello").json() == {"targets": 1}
    assert events.next("said")["text"] == "hello"
    assert used.http.get("/registry").json()["at_ms"] == 0


@pytest.mark.parametrize("ms", [0, -1, 1.5, True, "1000", None, STEP_LIMIT_MS + 1])
def test_advance_refuses_a_wrong_step(browser: Callable[..., Browser], ms: object) -> None:
    used = browser("virtual")
    cid = used.mount()
    assert used.http.post(f"/advance/{cid}", json={"ms": ms}).status_code == 422
    assert used.http.get("/registry").json()["at_ms"] == 0


def test_second_page_cannot_move_a_moving_clock(browser: Callable[..., Browser]) -> None:
    used = browser("virtual")
    cid = used.mount()
    moving, released = threading.Event(), threading.Event()
    dispatch = used.demo.dispatch

    def held(cid: str, event: stube.Event) -> None:
        moving.set()
        assert released.wait(5)
        dispatch(cid, event)

    used.registry.install_dispatch(held)
    registry: Any = used.registry
    mover = threading.Thread(target=registry.advance, args=(LONG_MS,))
    mover.start()
    try:
        assert moving.wait(5)
        answer = used.http.post(f"/advance/{cid}", json={"ms": 1})
    finally:
        released.set()
        mover.join(5)
    assert (answer.status_code, answer.text) == (409, "Another page is moving the clock at this moment. Try again.")


def test_page_offers_the_controls_of_its_registry(browser: Callable[..., Browser]) -> None:
    live, virtual = browser("memory"), browser("virtual")
    assert 'data-ability="freeze"' in live.http.get("/").text
    assert 'data-ability="advance"' in virtual.http.get("/").text
    assert live.http.post(f"/advance/{live.mount()}", json={"ms": 1}).status_code == 404
    assert virtual.http.post(f"/freeze/{virtual.mount()}").status_code == 404


# The end


def test_leaving_ends_the_conversation_immediately(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    events = used.connect(cid)
    events.next("hello")
    assert used.http.post(f"/leave/{cid}").status_code == 204
    assert used.registry.inspect() == {}
    assert len(used.demo.host.conversations) == 0
    assert events.next("bye") == {"reason": "ended"}
    events.rest()
    assert used.http.get(f"/stream/{cid}").status_code == 404
    assert used.say(cid, "anybody?").status_code == 404
    assert used.http.post(f"/leave/{cid}").status_code == 404
    assert used.registry.stats() == stube.Stats(accepted=3, cancelled=3)


def test_output_before_the_end_arrives_and_later_output_does_not(browser: Callable[..., Browser]) -> None:
    """Fault: output that crosses from the handler's thread is lost at the end, or arrives after it."""
    used = browser()
    cid = used.mount()
    events = used.connect(cid)
    conversation = used.demo.host.conversations.get(cid)
    assert conversation is not None
    used.demo.dispatch(cid, stube.Event("chat", "said", {"text": "before"}))
    conversation.end()
    used.demo._show(conversation, "said", {"text": "too late"})  # like a handler that is still running
    assert [events.any() for _ in range(3)] == [
        ("hello", {"name": name_of(cid)}),
        ("said", {"text": "before"}),
        ("bye", {"reason": "ended"}),
    ]
    assert not any(events.rest())


def test_client_that_never_reads_is_disconnected(browser: Callable[..., Browser]) -> None:
    used = browser(grace_ms=10)
    used.demo.host._send_seconds = 0.1
    cid = used.mount()
    url = used.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(f"GET /stream/{cid} HTTP/1.1\r\nHost: {url.host}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        # This is more than the kernel buffers for a client that does not read.
        for _ in range(100):
            used.registry.publish("room", {"from": "", "text": "x" * 100_000})
        assert used.registry.join(5)
    assert used.registry.inspect() == {}


def test_full_registry_answers_503_and_keeps_nothing(browser: Callable[..., Browser]) -> None:
    used = browser(max_pending=2)
    cid, other = used.mount(), used.mount()
    assert used.http.get("/").status_code == 503
    assert set(used.registry.inspect()) == {cid, other}
    used.http.post(f"/leave/{other}")
    assert used.connect(cid).any()[0] == "hello"
    assert used.say(cid, "no room").status_code == 503
    assert used.http.post(f"/freeze/{cid}").status_code == 503
    assert used.timers(cid) == ["tick", "idle"]


def test_event_without_a_handler_is_an_error(browser: Callable[..., Browser]) -> None:
    used = browser()
    with pytest.raises(LookupError, match="This host has no handler for Event"):
        used.demo.dispatch(used.mount(), stube.Event("main", "unheard-of"))
    used.demo.dispatch("long-gone", stube.Event("main", "unheard-of"))


# The panel


def test_panel_shows_the_registry_and_no_cid(browser: Callable[..., Browser]) -> None:
    used = browser()
    cid = used.mount()
    used.connect(cid).next("hello")
    waiting = used.mount()
    answer = used.http.get("/registry")
    assert cid not in answer.text
    assert waiting not in answer.text
    panel = answer.json()
    assert panel["backend"] == "MemoryRegistry"
    assert panel["topics"] == {"room": 1}
    assert panel["balanced"] is True
    assert panel["equation"].startswith("4 accepted == 0 delivered + 0 failed + 1 cancelled + 0 dropped + 3 timers")
    by_name = {held["name"]: held for held in panel["conversations"]}
    assert by_name[name_of(cid)]["topics"] == ["room"]
    assert by_name[name_of(cid)]["timers"][0]["event"] == "tick 1"
    assert 0 < by_name[name_of(cid)]["timers"][0]["remaining_ms"] <= LONG_MS
    assert by_name[name_of(waiting)]["pending_flow"] is True


def test_all_pages_share_one_snapshot(browser: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: each page that asks causes another snapshot, for which the registry's operations wait."""
    monkeypatch.setattr(_panel, "SNAPSHOT_SECONDS", LONG_MS)
    monkeypatch.setattr(_panel, "LONGEST_SECONDS", LONG_MS)
    used = browser()
    answers = {used.http.get("/registry").content}
    for _ in range(5):
        used.mount()
        answers.add(used.http.get("/registry").content)
    assert len(answers) == 1


def test_snapshot_is_never_old(browser: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a snapshot that was slow because other threads had the processor is reused for too long."""
    monkeypatch.setattr(_panel, "SNAPSHOT_SECONDS", 0.0)
    used = browser()
    taken, original = 0, used.registry.inspect

    def inspect(cid: str | None = None) -> dict[str, stube.ConversationInfo]:
        nonlocal taken
        taken += 1
        threading.Event().wait(0.2)  # waiting takes no CPU time
        return original(cid)

    used.registry.inspect = inspect  # type: ignore[method-assign]
    for _ in range(3):
        used.http.get("/registry")
    assert taken == 3


def test_panel_lists_a_limited_number_and_counts_the_rest(
    browser: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_panel, "PANEL_LIMIT", 2)
    used = browser()
    for _ in range(5):
        used.mount()
    panel = used.http.get("/registry").json()
    assert (panel["total"], len(panel["conversations"])) == (5, 2)


def test_meter_remembers_a_minute_and_no_more() -> None:
    now = 0.0
    meter = Meter(lambda: now)
    for step in range(1000):
        now = step * 500.0
        meter.note(now - 2 if step % 2 else None)
    assert meter.deliveries() == [2] * 60
    assert meter.lateness() == [2.0] * 60
    assert len(meter._deliveries) + len(meter._lateness) <= 2 * 62
    now += 3_600_000
    assert (meter.deliveries(), meter.lateness()) == ([0] * 60, [None] * 60)


# Serving


@pytest.mark.parametrize("missing", ["httpx", "sse_starlette", "starlette", "uvicorn"])
def test_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Fault: for a package that stube.asgi needs, too, the message names another extra."""
    for name in [name for name in sys.modules if name.startswith(("stube.asgi", "stube.demo", missing))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("asgi", "demo"):
        monkeypatch.delattr(stube, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("stube.demo")
    assert (caught.value.name or "").partition(".")[0] == missing
    assert str(caught.value) == (
        f"The demo needs the package {caught.value.name!r}, which is not installed. "
        "Install what it needs with: pip install 'stube[demo]'"
    )


def test_self_check_refuses_a_virtual_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_check("virtual", clients=1, json=False) == 2
    assert capsys.readouterr() == (
        "",
        "The virtual registry cannot be checked by live clients, because its clock moves only by advance(). "
        "Choose a registry whose time is real, such as memory.\n",
    )


def test_taken_port_is_reported_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("memory", host="127.0.0.1", port=port) == 2
    assert capsys.readouterr().err.startswith(f"Cannot listen on 127.0.0.1 port {port}: ")


def test_registry_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", "virtual")
    assert self_check(None, clients=1, json=False) == 2
    assert "virtual registry" in capsys.readouterr().err


def _stube(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "stube", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT, as Ctrl-C does")
def test_ctrl_c_ends_the_streams_and_the_process_in_good_order() -> None:
    with _stube("demo", "--registry", "memory", "--port", "0") as process, ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found is not None
        http = stack.enter_context(httpx.Client(base_url=found[0], timeout=5, trust_env=False))
        cid = re.search(r'data-cid="([\w-]+)"', http.get("/").text)
        assert cid is not None
        events = Events(stack.enter_context(http.stream("GET", f"/stream/{cid[1]}")))
        events.next("hello")
        process.send_signal(signal.SIGINT)
        assert events.next("bye") == {"reason": "shutdown"}
        events.rest()
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


# The self-check


def test_self_check_agrees_with_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_check("memory", clients=3, json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["stuck"], report["backend"]) == (True, None, "MemoryRegistry")
    figures = {figure["name"]: figure["seen"] for figure in report["figures"]}
    assert all(figure["ok"] for figure in report["figures"])
    assert figures["messages heard, first round"] == 3 * 5 * 4
    assert figures["delivered"] + figures["cancelled"] == figures["accepted"] > 100


FAULTS = {
    "lossy": {"messages heard, first round", "messages heard, second round", "accepted"},
    "doubling": {"messages heard twice", "accepted"},
    "reordering": {"messages out of order"},
    "immortal": {"timers left", "conversations left"},
    "deaf": {"sweeps", "grace timers", "cancelled"},
    "leaking": {"subscriptions left", "conversations left"},
    "hasty": {"ticks too early"},
    "miscounting": {"accepted", "delivered"},
    "unbalanced": {"dropped", "ledger balanced"},
    "stuck": {"clocks running"},
}


def test_self_check_names_the_wrong_figures() -> None:
    """Fault: the self-check passes a broken registry, or names another figure than the wrong one.

    Three run at a time, because more would slow down each other's clocks.
    """

    def run(fault: str) -> tuple[int, str, str]:
        spec = f"tests.broken_registries:{fault.capitalize()}"
        with _stube("demo", "--self-check", "--registry", spec, "--clients", "4") as process, ExitStack() as stack:
            stack.callback(process.kill)
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err

    with ThreadPoolExecutor(3) as pool:
        for fault, (code, out, err) in zip(FAULTS, pool.map(run, FAULTS), strict=True):
            assert code == 1, f"{fault}: {err}"
            rows = [line for line in out.splitlines() if line.endswith("  NO")]
            assert {re.split(r"\s{2,}", row)[0] for row in rows} >= FAULTS[fault], fault
            verdict = out.splitlines()[-1]
            assert all(f"{figure} (expected " in verdict for figure in FAULTS[fault]), fault


def test_self_check_never_hangs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(check, "BOUND_SECONDS", 2.0)
    from tests.broken_registries import Hanging

    before = set(threading.enumerate())
    try:
        assert self_check("tests.broken_registries:Hanging", clients=1, json=False) == 1
    finally:
        Hanging.release.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
    assert "stuck: chat, first round (did not finish within 2 s)." in capsys.readouterr().out


@pytest.mark.parametrize("clients", [0, 101])
def test_self_check_bounds_its_clients(clients: int) -> None:
    with pytest.raises(stube.ConfigError, match=f"cannot have {clients} clients. Choose a number from 1 to 100"):
        self_check("memory", clients=clients, json=False)
