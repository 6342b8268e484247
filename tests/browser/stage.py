"""The equipment of the tests in a real browser: the demo on a real server, Chromium, and a line that can be cut."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import pytest

import stube
from stube.demo.app import Demo, create_app
from stube.demo.server import running

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # there is no sandbox in a container, or for root
    "--disable-gpu",
    # The browser sends only requests for which a test asks.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Do not start a hundred processes for a hundred tabs.
    "--renderer-process-limit=4",
    "--disable-site-isolation-trials",
]
PATIENCE_MS = 15_000
"""The time that Playwright waits for a condition; reached only when something is wrong, or the machine is busy."""

# Every line that a page writes to its console is a fault, except these, which a connection causes that a test has cut.
CUT = ("net::ERR_", "Failed to load resource: the server responded with a status of 404")


def missing(what: str) -> NoReturn:
    """Fail in CI, where every test must run; skip on a developer's machine, which may have no browser."""
    sentence = f"The tests in a real browser need {what}."
    if os.environ.get("CI"):
        pytest.fail(f"{sentence} In CI they must run.", pytrace=False)
    pytest.skip(sentence)


@contextmanager
def chromium() -> Iterator[Any]:
    """Run the system's Chromium, driven by Playwright, whose loop is then the loop of this thread."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("the extra 'browser': pip install 'stube[browser]'")
    executable = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if executable is None:
        missing("Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Line:
    """A connection to the server that can be cut and restored, as a network is: neither side closes it in order."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._ends: set[socket.socket] = set()
        self._is_cut = False
        threading.Thread(target=self._accept, name="line", daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        with self._lock:
            self._is_cut = True
            ends = list(self._ends)
        for end in ends:
            _break(end)

    def restore(self) -> None:
        """Accept new connections again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Cut it for good."""
        # close() alone would leave the thread blocked in accept().
        _break(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), name="line", daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        _break(sink)
        with self._lock:
            self._ends.discard(source)
        source.close()


def _break(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


class Stage:
    """The demo on one registry, and the pages that use it."""

    def __init__(self, browser: Any, registry: stube.Backend, demo: Demo, url: str, stack: ExitStack) -> None:
        self.registry, self.demo, self.url = registry, demo, url
        self._browser, self._stack = browser, stack
        self.complaints: list[str] = []
        """Lines that a page wrote to its console, and its requests to other servers."""

    def context(self, **options: Any) -> Any:
        """Return a separate browser profile, like that of another person."""
        context = self._browser.new_context(**options)
        self._stack.callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def tab(self, context: Any = None, *, url: str | None = None, **options: Any) -> Any:
        """Return a new tab with the page in it; in a profile of its own unless one is given."""
        page = (context or self.context(**options)).new_page()
        page.on("console", lambda message: self._complain(message.text))
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("request", lambda request: self._watch(request.url))
        page.goto(url or self.url, wait_until="domcontentloaded")
        return page

    def line(self) -> Line:
        """Return another connection to the server, which can be cut."""
        line = Line(int(self.url.rpartition(":")[2]))
        self._stack.callback(line.close)
        return line

    def until(self, met: Callable[[], object], page: Any) -> None:
        """Wait until a condition outside the browser holds, while `page` keeps running; at most `PATIENCE_MS`."""
        for _ in range(PATIENCE_MS // 20):
            if met():
                return
            page.wait_for_timeout(20)  # runs Playwright's own loop, which the events of pages need
        raise AssertionError(f"the condition never held: {self.registry.stats()}, {self.registry.inspect()}")

    def is_empty(self) -> bool:
        """Return True if nothing of any conversation is left, neither in the registry nor in the host."""
        stats = self.registry.stats()
        pending = (stats.timers, stats.queued, stats.running, stats.subscriptions, stats.pending_flows)
        return not any(pending) and not self.registry.inspect() and not len(self.demo.host.conversations)

    def _complain(self, text: str) -> None:
        if not any(known in text for known in CUT):
            self.complaints.append(text)

    def _watch(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:")):
            self.complaints.append(f"asked for {url}")


@contextmanager
def staged(browser: Any, spec: str, **times: float) -> Iterator[Stage]:
    """Serve the demo on the registry of a spec. At the end there must be no complaint of any page."""
    with ExitStack() as stack:
        registry = stack.enter_context(stube.create_registry(spec))
        app = create_app(registry, **times)
        url = stack.enter_context(running(app))
        stage = Stage(browser, registry, app.state.demo, url, stack)
        yield stage
        assert stage.complaints == []


def name_in(page: Any) -> str:
    """Return the name of the page's conversation."""
    name: str = page.locator("h1").inner_text()
    return name


def say(page: Any, text: str) -> None:
    page.get_by_label("Message to the room").fill(text)
    page.get_by_role("button", name="Send").click()


def hears(page: Any, text: str) -> None:
    """Wait until the page shows a message."""
    page.locator(".log li > div", has_text=text).wait_for()


def clock(page: Any, seconds: int) -> None:
    """Wait until the page's clock shows at least so many seconds."""
    page.wait_for_function(
        "least => { const [m, s] = document.getElementById('clock').textContent.split(':').map(Number);"
        " return 60 * m + s >= least }",
        arg=seconds,
    )


def row(page: Any, name: str) -> Any:
    """Return the row of a conversation in the inspector."""
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name))
