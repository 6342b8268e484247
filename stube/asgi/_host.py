"""The host: the registry's life inside the application's, and the responses to the pages.

What ends each conversation is decided in `_sessions.py`, and what a page is sent in `_stream.py`. This module opens the
registry with the lifespan, hands each delivery to the application or to the sessions, boots a conversation when its
first stream connects, and drains at the end.

Threads: `open`, `send`, `end` and `close_streams` are called from any thread, and the registry delivers on its own. All
else runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any, TypeAlias, TypeVar, cast

from sse_starlette import ServerSentEvent
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypeIs, override

import stube
from stube.asgi._server import stopping
from stube.asgi._sessions import INSTANCE, Sessions
from stube.asgi._stream import Stream, body_of

__all__ = ["Host", "conversation_stream"]

AnyDispatch: TypeAlias = Callable[[str, stube.Event], Awaitable[None] | None]
Boot: TypeAlias = Callable[[stube.Conversation, Any], Awaitable[None] | None]
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
T = TypeVar("T")

WATCH_SECONDS = 0.1
"""The pause between two looks whether the server stops: that of uvicorn itself."""

_logger = logging.getLogger("stube")


class Host:
    """The glue between a registry and an ASGI application. One per application.

    Args:
        dispatch: called as `dispatch(cid, event)` for every delivery, on the registry's delivery thread or on the event
            loop. A coroutine function needs a backend that awaits it. See `Registry.install_dispatch`. Events of the
            instance `stube.asgi`, which is the host's own, do not reach it.
        boot: called as `boot(conversation, flow_id)` once per conversation, when its first stream connects; `flow_id`
            is the argument of `open`. A coroutine function runs on the loop. A function runs in a worker thread, or on
            the loop if the registry is served there (`coroutine_dispatch`). An exception ends the conversation and
            answers the request: with 500, unless the application handles it.
        registry: a spec for `stube.create_registry`; None for the spec in the environment, see
            `stube.registry_from_env`. Or an existing registry, which the host does not close at the end.
        lifespan: the application's own lifespan. It is entered when the registry is open, and left when the last
            conversation has ended, so that a handler always finds what the lifespan sets up.
        on_end: called as `on_end(conversation)`, once for each, when it has ended and nothing of it remains, so that
            the application can remove what it keeps of the conversation elsewhere. See `stube.Conversations`.
        sweep_seconds: the time within which a page must connect.
        grace_seconds: the time within which a page whose stream was cut must come back.
        heartbeat_seconds: the longest silence of a stream.
        buffer_events: the number of events that are kept of each conversation, for a page that comes back or reads
            slowly.
        send_seconds: the time that one event may wait for a page that does not read, before the stream is cut.
        drain_seconds: the time that the whole shutdown may take.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value. Errors in the spec are raised when the lifespan
            starts.

    Create it where the application is created and give the application its `lifespan`. While the lifespan runs the host
    is also `app.state.stube`. The lifespan may run again afterwards.
    """

    def __init__(
        self,
        dispatch: AnyDispatch,
        boot: Boot,
        *,
        registry: str | Mapping[str, object] | stube.Backend | None = None,
        lifespan: Lifespan | None = None,
        on_end: Callable[[stube.Conversation], object] | None = None,
        sweep_seconds: float = 10.0,
        grace_seconds: float = 30.0,
        heartbeat_seconds: float = 15.0,
        buffer_events: int = 256,
        send_seconds: float = 10.0,
        drain_seconds: float = 5.0,
    ) -> None:
        self._dispatch = _callable("dispatch", dispatch)
        self._boot = _callable("boot", boot)
        self._spec = registry
        self._own_lifespan: Lifespan = (
            _callable("lifespan", lifespan) if lifespan is not None else lambda app: nullcontext()
        )
        self._on_end = _callable("on_end", on_end) if on_end is not None else None
        self._sweep_seconds = _seconds("sweep_seconds", sweep_seconds, zero=True)
        self._grace_seconds = _seconds("grace_seconds", grace_seconds, zero=True)
        self._heartbeat_seconds = _seconds("heartbeat_seconds", heartbeat_seconds)
        self._buffer_events = _count("buffer_events", buffer_events)
        self._send_seconds = _seconds("send_seconds", send_seconds)
        self._drain_seconds = _seconds("drain_seconds", drain_seconds, zero=True)
        # Each run of the lifespan sets these anew, and leaves them as they are at its end.
        self._registry: stube.Backend | None = None
        self._sessions: Sessions | None = None
        self._running = False
        # On the loop only: one future for each response that is under way, done when the response is over.
        self._responses: set[asyncio.Future[None]] = set()

    @property
    def registry(self) -> stube.Backend:
        """The registry of the running or the latest lifespan. RuntimeError before the first."""
        return _started(self._registry)

    @property
    def conversations(self) -> stube.Conversations:
        """The live conversations. Any thread may end one: then its stream ends, and nothing of it remains."""
        return _started(self._sessions).conversations

    def open(self, flow_id: Any) -> stube.Conversation:
        """Open a conversation for a page that is about to be sent to a browser. Any thread; O(1).

        Args:
            flow_id: passed to `boot` when the page's stream connects; any object except None.

        Returns:
            Its handle. The page must connect to the stream of its `cid` within `sweep_seconds`, or it ends.

        Raises:
            RegistryFull, RegistryClosed: no room, or the host is shutting down. Nothing of it remains.
            RuntimeError: the lifespan has not started.
        """
        return _started(self._sessions if self._running else None).open(flow_id)

    def stream(self, cid: str) -> Response:
        """Return the response to a page that connects: the events of its conversation, until the conversation ends.

        Args:
            cid: the conversation, as the page names it.

        The first stream of a conversation boots it. A later one replaces the one before and continues after the event
        in the page's header `Last-Event-ID`. If events are lost, the event `gap` comes first, with `{"missed": n}`,
        null for n when the id is not one of this conversation's. The last event is `bye`, with `{"reason": why}`:
        `ended`, `replaced`, `behind` (the page did not read fast enough, and comes back to a gap), or `shutdown`.

        The answer is 404 when the conversation has ended or never existed, 503 during a shutdown, 405 to HEAD: each
        stops an EventSource. When the response is called it raises them as Starlette's `HTTPException`; it also raises
        the exceptions of `boot`.
        """
        return _StreamResponse(self, cid)

    def send(self, conversation: stube.Conversation, event: str, data: str) -> bool:
        """Send an event to the page of a conversation: now if it is connected, else when it comes back.

        Args:
            conversation: the conversation of the page.
            event: the event's name, on one line; `bye` and `gap` are reserved for the stream.
            data: its text, of any number of lines.

        Returns:
            True when the event was accepted, False when the conversation has ended.

        Raises:
            TypeError: `event` or `data` is not a `str`.
            ValueError: `event` is empty, has a line break or is reserved, or a text holds half a surrogate pair.

        Any thread; never waits. The events of one caller keep their order. Each event reaches the page once, unless
        more than `buffer_events` later ones are sent before the page reads it: then a `gap` takes its place. O(length
        of `data`).
        """
        body = body_of(event, data)
        session = None if self._sessions is None else self._sessions.find(conversation)
        if session is None:
            return False
        session.add(body)
        return True

    def end(self, cid: str) -> None:
        """End a conversation by its name, as a page requests when the user leaves it. Any thread.

        Silent when it has ended or never existed. Its stream ends, and nothing of it remains. Code that has the handle
        calls `Conversation.end` instead.
        """
        conversation = self.conversations.get(cid)
        if conversation is not None:
            conversation.end()

    def close_streams(self) -> None:
        """End every stream and refuse new ones, because the server is about to stop and would wait for them.

        Under uvicorn, and servers that run uvicorn, the host calls it itself. Under another server call it from the
        shutdown hook, before the server waits for open connections. Any thread; returns immediately.
        """
        if self._sessions is not None:
            self._sessions.close()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[Any]:
        """Run the host with the application: open the registry, and at the end drain within `drain_seconds`.

        Draining ends the streams, then the conversations, waits until no handler runs, and closes the registry unless
        it existed before. The loop keeps running during that. A handler that does not stop in time is logged as a
        warning.

        Pass a lifespan of your own to `Host`, which documents when it is entered and left. Or let it wrap this one;
        then the code after its `yield` runs while conversations are still live:

            @asynccontextmanager
            async def lifespan(app):
                async with host.lifespan(app) as state:
                    yield state

        Raises:
            RuntimeError: it runs already.
            The errors of `stube.create_registry` and `Registry.install_dispatch`.
        """
        if self._running:
            raise RuntimeError("This host runs already. Make one Host for each application.")
        ours = self._spec is None or isinstance(self._spec, str | Mapping)
        registry = self._registry = _open_registry(self._spec)
        sessions = self._sessions = Sessions(
            registry,
            asyncio.get_running_loop(),
            self._on_end,
            sweep_seconds=self._sweep_seconds,
            grace_seconds=self._grace_seconds,
            heartbeat_seconds=self._heartbeat_seconds,
            buffer_events=self._buffer_events,
        )
        self._running = True
        watch: asyncio.Task[None] | None = None
        drained = False
        try:
            cast("Any", registry).install_dispatch(self._wrapped(sessions))
            app.state.stube = self
            watch = asyncio.create_task(self._watch(sessions, stopping()), name="stube.asgi watch")
            async with self._own_lifespan(app) as state:
                try:
                    yield state
                finally:
                    drained = True
                    await self._drain(registry, sessions, ours)
        finally:
            if watch is not None:
                watch.cancel()
            if not drained:
                await self._drain(registry, sessions, ours)
            self._running = False

    def _wrapped(self, sessions: Sessions) -> AnyDispatch:
        """Hand the host's own events to the sessions, and all others to the application's dispatch.

        The result is a coroutine function if dispatch is one, so that a registry that awaits nothing refuses it.
        """
        dispatch = self._dispatch
        if stube.is_coroutine_function(dispatch):

            async def awaiting(cid: str, event: stube.Event) -> None:
                if event.instance_id == INSTANCE:
                    sessions.due(cid, event)
                else:
                    await cast("Awaitable[None]", dispatch(cid, event))

            return awaiting

        def calling(cid: str, event: stube.Event) -> Awaitable[None] | None:
            if event.instance_id != INSTANCE:
                return dispatch(cid, event)
            sessions.due(cid, event)
            return None

        return calling

    # On the event loop only

    async def _connect(self, cid: str, last_event_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a stream, from its first line to its last."""
        sessions = _started(self._sessions)
        if sessions.closing:
            raise HTTPException(503, "The server is shutting down. Load the page anew in a moment.")
        claimed = sessions.claim(cid)  # from here to the assignment of `session.stream`: one step of the loop
        if claimed is None:
            raise _gone()
        session, flow_id = claimed
        over = asyncio.get_running_loop().create_future()
        self._responses.add(over)
        if session.stream is not None:
            session.stream.end("replaced")
        stream = session.stream = Stream(session, last_event_id)

        def heartbeat() -> ServerSentEvent:
            sessions.renew_mark(session)
            return ServerSentEvent(comment="heartbeat")

        try:
            sessions.mark(session)
            if flow_id is not None:
                await self._run_boot(session.conversation, flow_id)
            await stream.respond(
                scope,
                receive,
                send,
                heartbeat=heartbeat,
                heartbeat_seconds=self._heartbeat_seconds,
                send_seconds=self._send_seconds,
                farewell_seconds=min(self._send_seconds, self._drain_seconds),
            )
        except stube.ConversationEnded:
            raise _gone()
        finally:
            if session.stream is stream:
                session.stream = None
                sessions.cut(session)
            self._responses.discard(over)
            over.set_result(None)

    async def _run_boot(self, conversation: stube.Conversation, flow_id: Any) -> None:
        try:
            if _awaits(self.registry) or stube.is_coroutine_function(self._boot):
                answer = self._boot(conversation, flow_id)
            else:
                answer = await run_in_threadpool(self._boot, conversation, flow_id)
            if answer is not None:
                await answer
        except BaseException:
            conversation.end()  # the application does not know a conversation whose boot has failed
            raise

    async def _watch(self, sessions: Sessions, server_is_stopping: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        look = loop.time() + self._heartbeat_seconds
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not sessions.closing and server_is_stopping():
                sessions.close()
            if loop.time() >= look:
                sessions.end_forgotten()
                look = loop.time() + self._heartbeat_seconds

    async def _drain(self, registry: stube.Backend, sessions: Sessions, ours: bool) -> None:
        """End the streams and the conversations, and wait for the running handlers, within `drain_seconds`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_seconds

        def left() -> float:
            return max(0.0, until - loop.time())

        def end_all() -> None:
            for conversation in sessions.conversations:
                conversation.end()

        sessions.closing = True
        sessions.end_streams()
        if self._responses:
            await asyncio.wait(list(self._responses), timeout=left())
        if _awaits(registry):
            end_all()
            try:
                stopped = await registry.settled(left())
            finally:  # a virtual registry refuses to settle while its clock is being moved
                if ours:
                    stopped = await registry.aclose(left())
        else:
            # It needs a thread of its own, because the handlers for which it waits may occupy all threads of the loop.
            with _worker() as call:
                await call(end_all)
                try:
                    stopped = await call(lambda: registry.settle(left()))
                finally:
                    if ours:
                        stopped = await call(lambda: registry.close(left()))
        if not ours:
            with suppress(stube.RegistryClosed):
                cast("Any", registry).install_dispatch(_nowhere)
        if not stopped:
            _logger.warning("A handler still runs %g seconds after the host began to drain.", self._drain_seconds)


class _StreamResponse(Response):
    """A whole stream. It claims the conversation when it is called, so one that is never called claims nothing."""

    def __init__(self, host: Host, cid: str) -> None:
        super().__init__()
        self._host, self._cid = host, cid

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            raise HTTPException(405)  # a request for the headers alone must not take the baton
        await self._host._connect(self._cid, Headers(scope=scope).get("last-event-id", ""), scope, receive, send)


def conversation_stream(request: HTTPConnection, cid: str) -> Response:
    """Return `Host.stream` of the application that received a request.

    Args:
        request: the request.
        cid: the conversation, as the page names it.

    Raises:
        RuntimeError: the application has no `Host`.
    """
    host: Host | None = getattr(request.app.state, "stube", None)
    return _started(host).stream(cid)


def _nowhere(cid: str, event: stube.Event) -> None:
    """Ignore an event: the dispatch of a registry whose host has ended."""


def _open_registry(spec: str | Mapping[str, object] | stube.Backend | None) -> stube.Backend:
    if spec is None:
        return stube.registry_from_env()
    return stube.create_registry(spec) if isinstance(spec, str | Mapping) else spec


def _awaits(registry: stube.Backend) -> TypeIs[stube.AsyncBackend | stube.VirtualBackend]:
    return stube.is_async(registry) or stube.is_virtual(registry)


@contextmanager
def _worker() -> Iterator[Callable[[Callable[[], T]], Awaitable[T]]]:
    """Start a thread beside the loop; yield `call`, which runs a function on it and is awaited."""
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1, "stube-drain")
    try:
        yield lambda function: loop.run_in_executor(executor, function)
    finally:
        executor.shutdown(wait=False)


def _started(value: T | None) -> T:
    if value is None:
        raise RuntimeError(
            "The host has not started. Give its lifespan to the application: FastAPI(lifespan=host.lifespan)."
        )
    return value


def _gone() -> HTTPException:
    return HTTPException(404, "This conversation has ended, or never existed. Load the page anew.")


def _callable(name: str, value: T) -> T:
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}. Pass a function.")
    return value


def _seconds(name: str, value: float, *, zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}. Pass seconds as a number.")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        what = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} must be {what} and finite, not {value!r}. Pass such a number of seconds.")
    return float(value)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}. Pass a whole number.")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value!r}. Pass how many events to keep.")
    return value
