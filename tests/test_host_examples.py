"""The examples of hosts, over real HTTP: they are small, and do what their docstrings say."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

import pytest
from typing_extensions import override

import stube

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDED = "needs the extras 'asgi', 'demo' and 'examples': pip install 'stube[asgi,demo,examples]'"
httpx = pytest.importorskip("httpx", reason=NEEDED)
for package in ("sse_starlette", "uvicorn", "fastapi"):
    pytest.importorskip(package, reason=NEEDED)

from tests.test_asgi import Page, Server, wait_until  # noqa: E402


def load(name: str) -> ModuleType:
    """Load an example as a new module."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def fastapi_host() -> Iterator[tuple[str, Any]]:
    module = load("fastapi_host")
    server = Server(module.app)
    server.start()
    try:
        yield server.url, module.host
    finally:
        server.stop()


@contextmanager
def wsgi_host() -> Iterator[tuple[str, Any]]:
    module = load("wsgi_host")
    with module.registry, module.make_server("127.0.0.1", 0, module.application, module.Server, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", module
        finally:
            server.shutdown()
            thread.join()


class Quiet(WSGIRequestHandler):
    """Without a line on stderr for each request."""

    @override
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Browser:
    """Pages of one host, each with a client of its own, as a browser's streams have a connection of their own."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.http = stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))

    def mount(self) -> str:
        answer = self.http.get("/").raise_for_status()
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        cid: str = answer.text.partition('EventSource("/stream/')[2].partition('"')[0]
        assert f'"/leave/{cid}"' in answer.text
        return cid

    @contextmanager
    def stream(self, cid: str, last_id: str = "") -> Iterator[Page]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.http.stream("GET", f"/stream/{cid}", headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield Page(response)

    def status(self, cid: str) -> int:
        with self.http.stream("GET", f"/stream/{cid}") as response:
            status: int = response.status_code
            return status


TICK = ("tick", "")


def hears(page: Page, *wanted: tuple[str, str]) -> bool:
    """Return True when all of these have come, in any order: clock and chat are independent of each other."""
    missing = set(wanted)
    while missing:
        missing.discard(step(page))
    return True


def step(page: Page) -> tuple[str, str]:
    """Return the next event of a page. The data of a tick is the time of day, and left out."""
    name, data = page.next()
    return (name, "" if name == "tick" and re.fullmatch(r"\d\d:\d\d:\d\d", data) else data)


def nothing_is_left(host: Any) -> None:
    registry: stube.Backend = host.registry
    wait_until(lambda: registry.inspect() == {})
    assert len(host.conversations) == 0
    assert registry.stats().balanced


@pytest.mark.parametrize(("name", "most"), [("fastapi_host", 40), ("wsgi_host", 80)])
def test_example_is_as_short_as_we_say(name: str, most: int) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= most


def test_fastapi_host_has_a_clock_a_chat_and_streams_that_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock steps once a second, so this takes about three of them."""
    monkeypatch.delenv("STUBE_REGISTRY", raising=False)
    with ExitStack() as stack:
        url, host = stack.enter_context(fastapi_host())
        browser = Browser(url, stack)
        first, second = browser.mount(), browser.mount()
        listening = stack.enter_context(browser.stream(second))
        with browser.stream(first) as page:
            assert step(page) == TICK
            assert browser.http.post("/say", params={"text": "hello <b>&\n"}).json() == 2
            assert hears(page, ("said", "hello <b>&\n"))
        assert hears(listening, TICK, ("said", "hello <b>&\n"))
        wait_until(lambda: any(timer.event == "gone" for timer in host.registry.inspect(first)[first].timers))
        browser.http.post("/say", params={"text": "missed"})
        with browser.stream(first, page.last_id) as again:
            assert hears(again, ("said", "missed"), TICK)
            assert hears(again, TICK)
            for cid in (first, second):
                assert browser.http.post(f"/leave/{cid}").status_code == 200
            assert again.rest()[-1] == ("bye", '{"reason": "ended"}')
            assert listening.rest()[-1] == ("bye", '{"reason": "ended"}')
        nothing_is_left(host)
        assert len(host._sessions) == 0
        assert browser.status(first) == 404


def test_wsgi_host_has_a_clock_a_chat_and_a_thread_per_stream() -> None:
    """The clock steps once a second, and a stream that is gone shows in the second step after it at the latest."""
    with ExitStack() as stack:
        url, host = stack.enter_context(wsgi_host())
        browser = Browser(url, stack)
        before = threading.active_count()
        first, second, third = browser.mount(), browser.mount(), browser.mount()
        listening = stack.enter_context(browser.stream(second))
        with browser.stream(first) as page:
            assert step(page) == TICK
            assert browser.http.post("/say", params={"text": "hello\n\nevent: <b>&"}).status_code == 200
            assert hears(page, ("said", "hello event: <b>&"), TICK)
            assert browser.status(first) == 404
        assert hears(listening, TICK, ("said", "hello event: <b>&"))
        # The page is gone: the writing fails, the stream is closed, and the conversation ends with it.
        wait_until(lambda: host.conversations.get(first) is None)
        # A page that leaves, and one that never connects.
        assert browser.http.post(f"/leave/{second}").status_code == 200
        assert {name for name, _ in listening.rest()} <= {"tick"}
        host.dispatch(third, stube.Event("main", "sweep"))
        nothing_is_left(host)
        assert host.outboxes == {}
        assert browser.status(third) == 404
        wait_until(lambda: threading.active_count() <= before + 1)


def test_wsgi_host_ends_a_page_that_does_not_read() -> None:
    with ExitStack() as stack:
        _, host = stack.enter_context(wsgi_host())
        conversation = host.conversations.open()
        host.outboxes[conversation.cid] = host.queue.Queue(1)
        host.dispatch(conversation.cid, stube.Event("main", "said", "1"))
        assert not conversation.ended
        host.dispatch(conversation.cid, stube.Event("main", "said", "2"))
        assert conversation.ended
        nothing_is_left(host)
        assert host.outboxes == {}


def test_wsgi_host_keeps_the_page_whose_stream_came_while_the_sweep_began() -> None:
    with ExitStack() as stack:
        url, host = stack.enter_context(wsgi_host())
        browser = Browser(url, stack)
        cid = browser.mount()
        with browser.stream(cid) as page:
            host.dispatch(cid, stube.Event("main", "sweep"))
            assert step(page) == TICK
