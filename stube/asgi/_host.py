"""The host: the registry's life inside the application's, and what ends a conversation.

At every moment from its opening to its end a conversation has something of the host's own in the registry, on the
instance `stube.asgi`, so that it has an end in sight: until the first stream the sweep timer, while a stream is
connected a mark, afterwards the grace timer. Who decides each race:

1. Sweep against first stream: the baton, which has one taker.
2. Grace timer against a stream that comes back: `handle.cancel()`. Whatever it was that made it say no, the
   conversation ends.
3. End against a stream that connects: to look for the session and to attach the stream is one step of the loop, and
   an end comes there as another, after the session is gone. So either there is no session or the end finds the stream.
4. Opening against shutdown: the session is kept first and `_closing` is read then.

Threads: `open` and `send` are called from any, the registry's own events arrive on its thread, and ends happen
anywhere. Streams are touched on the loop only.
"""

from __future__ import annotations

import asyncio
import inspect
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
from stube.asgi._stream import ENDED, Session, Stream, body_of

__all__ = ["Host", "conversation_stream"]

AnyDispatch: TypeAlias = Callable[[str, stube.Event], Awaitable[None] | None]
Boot: TypeAlias = Callable[[stube.Conversation, Any], Awaitable[None] | None]
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
T = TypeVar("T")

INSTANCE = "stube.asgi"
"""The instance of every conversation that is the host's own: its timers and its mark."""

MARKS = ("stube.asgi tick", "stube.asgi tock")
"""Topics that nobody publishes on. A conversation with a stream is subscribed to one of them, at every heartbeat to the
other, and finds out in changing whether the registry has forgotten it."""

WATCH_SECONDS = 0.1
"""How often the host looks whether the server stops: as often as uvicorn does itself."""

_logger = logging.getLogger("stube")


class Host:
    """The glue between a registry and an ASGI application. One per application.

    Args:
        dispatch: called as `dispatch(cid, event)` for every delivery, where the registry calls it: on a thread of its
            own, or on the loop. A coroutine function needs a backend that awaits it. See
            `Registry.install_dispatch`. Of the instance `stube.asgi`, which is the host's own, nothing arrives.
        boot: called as `boot(conversation, flow_id)` once per conversation, when its first stream has come: what
            `open` was given. A coroutine function runs on the loop; a function in a worker thread, or on the loop
            where the registry is there (`coroutine_dispatch`). What it raises ends the conversation and is the answer
            to the request, so 500 unless the application handles it.
        registry: a spec for `stube.create_registry`; None for what the environment says, see
            `stube.registry_from_env`. Or a registry that exists already, which is not closed at the end.
        lifespan: the application's own lifespan. It is entered when the registry is there, and left when the last
            conversation has ended: what handlers need is there as long as handlers run.
        on_end: called as `on_end(conversation)`, once for each, when it has ended and nothing of it remains; for what
            the application keeps of a conversation elsewhere. See `stube.Conversations`.
        sweep_seconds: how long a page may take to connect.
        grace_seconds: how long a cut stream may take to come back.
        heartbeat_seconds: how long a stream is silent at most.
        buffer_events: how many events are kept of each conversation, for a page that comes back and for one that is
            slow to read.
        send_seconds: how long one event may stand in a full connection before the stream is cut.
        drain_seconds: how long a shutdown may take, all in all.

    Raises:
        TypeError, ValueError: an argument is of no use, at once. What is wrong with the spec shows when the lifespan
            starts.

    Make it where the application is made and give the application its `lifespan`. While that runs the host is also
    `app.state.stube`. It may run again afterwards.
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
        self._own_on_end = _callable("on_end", on_end) if on_end is not None else None
        self._sweep_seconds = _seconds("sweep_seconds", sweep_seconds, zero=True)
        self._grace_seconds = _seconds("grace_seconds", grace_seconds, zero=True)
        self._heartbeat_seconds = _seconds("heartbeat_seconds", heartbeat_seconds)
        self._buffer_events = _count("buffer_events", buffer_events)
        self._send_seconds = _seconds("send_seconds", send_seconds)
        self._drain_seconds = _seconds("drain_seconds", drain_seconds, zero=True)
        # From here on what one run of the lifespan sets.
        self._registry: stube.Backend | None = None
        self._conversations: stube.Conversations | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = True
        # By cid: each operation on it is one of the dict's own, so any thread may.
        self._sessions: dict[str, Session] = {}
        # On the loop only: one for each response that is under way, done when it is over.
        self._responses: set[asyncio.Future[None]] = set()

    @property
    def registry(self) -> stube.Backend:
        """The registry of the lifespan that runs, or that ran last. RuntimeError before the first."""
        return _started(self._registry)

    @property
    def conversations(self) -> stube.Conversations:
        """The live conversations. To end one is enough, from anywhere: its stream ends, nothing of it remains."""
        return _started(self._conversations)

    def open(self, flow_id: Any) -> stube.Conversation:
        """Open a conversation for a page that is about to be handed out. Any thread; O(1).

        Args:
            flow_id: what `boot` gets when the page's stream comes; anything but None.

        Returns:
            Its handle. The page must connect to the stream of its `cid` within `sweep_seconds`, or it ends.

        Raises:
            RegistryFull, RegistryClosed: no room, or the host is shutting down. Nothing is left of it.
            RuntimeError: the lifespan has not started.
        """
        loop = _started(self._loop)
        if self._closing:
            raise _shutting_down()
        conversation = self.conversations.open()
        session = self._sessions[conversation.cid] = Session(conversation, self._buffer_events, loop)
        try:
            conversation.put_flow(flow_id)
            self._arm(session, "sweep", self._sweep_seconds)
            if self._closing:
                raise _shutting_down()
        except BaseException as exc:
            conversation.end()
            if isinstance(exc, stube.ConversationEnded):
                raise _shutting_down() from exc  # nobody else knows of it who could have ended it
            raise
        return conversation

    def stream(self, cid: str) -> Response:
        """The response to a page that connects: the events of its conversation, until that ends.

        Args:
            cid: the conversation, as the page names it.

        The first stream of a conversation boots it. A later one replaces the one before and goes on where the page
        left off, by its header `Last-Event-ID`; the event `gap` comes first if events are lost, with `{"missed": n}`,
        null for n when the id is none of this conversation's. Its last event is `bye`, with `{"reason": why}`:
        `ended`, `replaced`, `behind` (the page did not read and comes back to a gap), or `shutdown`.

        The answer is 404 when the conversation has ended or never was, 503 during a shutdown, 405 to HEAD: each stops
        an EventSource. They are raised as Starlette's `HTTPException` when the response is called, as is what `boot`
        raises.
        """
        return _StreamResponse(self, cid)

    def send(self, conversation: stube.Conversation, event: str, data: str) -> bool:
        """Send an event to the page of a conversation: now if it is connected, else when it comes back.

        Args:
            conversation: whose page.
            event: the event's name: one line; `bye` and `gap` are the stream's own.
            data: its text, of any number of lines.

        Returns:
            Whether it was taken: False when the conversation has ended.

        Raises:
            TypeError: `event` or `data` is no `str`.
            ValueError: `event` is empty, has a line break or is reserved, or a text holds half a surrogate pair.

        Any thread; never waits. In order for one caller; each event reaches the page once, unless more than
        `buffer_events` later ones come before the page reads it: then a `gap` does. O(length of `data`).
        """
        body = body_of(event, data)
        session = self._sessions.get(conversation.cid)
        if session is None or session.conversation is not conversation or conversation.ended:
            return False
        session.add(body)
        return True

    def end(self, cid: str) -> None:
        """End a conversation by its name: what a page asks for that is being left. Any thread.

        Silent when it has ended or never was. Its stream ends, and nothing of it remains; `Conversation.end` does the
        same, for whoever has the handle.
        """
        conversation = self.conversations.get(cid)
        if conversation is not None:
            conversation.end()

    def close_streams(self) -> None:
        """End every stream and take no new one, for the server is about to stop and would wait for them.

        Called by itself under uvicorn and what runs uvicorn. Call it from the shutdown hook of another server, before
        that waits for open connections. Any thread; returns at once.
        """
        self._closing = True
        self._on_loop(self._close_streams)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[Any]:
        """The lifespan for the application: opens the registry, and in the end drains within `drain_seconds`.

        Draining ends the streams, then the conversations, waits until no handler runs, and closes the registry unless
        it was handed in ready; the loop goes on meanwhile. What does not stop in time is logged as a warning.

        A lifespan of your own can be handed to `Host`, which says when it is entered and left. Or it can wrap this
        one, and then what follows its `yield` runs while conversations still live:

            @asynccontextmanager
            async def lifespan(app):
                async with host.lifespan(app) as state:
                    yield state

        Raises:
            RuntimeError: it runs already.
            What `stube.create_registry` and `Registry.install_dispatch` raise.
        """
        if self._loop is not None:
            raise RuntimeError("This host runs already. Make one Host for each application.")
        ours = self._spec is None or isinstance(self._spec, str | Mapping)
        registry = self._registry = _open_registry(self._spec)
        self._conversations, self._loop, self._closing = None, asyncio.get_running_loop(), False
        watch: asyncio.Task[None] | None = None
        drained = False
        try:
            cast("Any", registry).install_dispatch(self._wrapped())
            self._conversations = stube.Conversations(registry, on_end=self._on_end)
            app.state.stube = self
            watch = asyncio.create_task(self._watch(stopping()), name="stube.asgi watch")
            async with self._own_lifespan(app) as state:
                try:
                    yield state
                finally:
                    drained = True
                    await self._drain(registry, ours)
        finally:
            if watch is not None:
                watch.cancel()
            if not drained:
                await self._drain(registry, ours)
            self._loop = None

    # The registry's own events, where the registry delivers.

    def _wrapped(self) -> AnyDispatch:
        """The host's dispatch behind the handling of what is ours. Of the same kind, so that a registry which awaits
        nothing refuses an `async def` at once."""
        dispatch = self._dispatch
        if any(map(inspect.iscoroutinefunction, (dispatch, getattr(dispatch, "__call__", None)))):  # noqa: B004

            async def awaiting(cid: str, event: stube.Event) -> None:
                if event.instance_id == INSTANCE:
                    self._due(cid, event)
                else:
                    await cast("Awaitable[None]", dispatch(cid, event))

            return awaiting

        def calling(cid: str, event: stube.Event) -> Awaitable[None] | None:
            if event.instance_id != INSTANCE:
                return dispatch(cid, event)
            self._due(cid, event)
            return None

        return calling

    def _due(self, cid: str, event: stube.Event) -> None:
        # By the session and not by the cid: a timer that had begun when its conversation ended must not end another
        # that was opened under its name.
        session = self._sessions.get(cid)
        if session is None:
            return
        # A sweep that finds no baton comes after the first stream (race 1).
        if event.name == "gone" or (event.name == "sweep" and session.conversation.take_flow() is not None):
            session.conversation.end()

    def _arm(self, session: Session, name: str, seconds: float) -> None:
        session.due = _started(self._loop).time() + seconds
        session.timer = session.conversation.schedule(name, seconds * 1000, instance_id=INSTANCE)

    def _on_end(self, conversation: stube.Conversation) -> None:
        session = self._sessions.get(conversation.cid)
        if session is not None and session.conversation is conversation:
            del self._sessions[conversation.cid]
            self._on_loop(self._ended, session)
        if self._own_on_end is not None:
            self._own_on_end(conversation)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the loop has closed, and with it every stream

    # From here on everything runs on the loop.

    def _ended(self, session: Session) -> None:
        if session.stream is not None:
            session.stream.end(ENDED)

    def _close_streams(self) -> None:
        for session in list(self._sessions.values()):
            if session.stream is not None:
                session.stream.end("shutdown")

    async def _connect(self, cid: str, last_event_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """From the first line to the last of a stream: what is attached here is detached here."""
        session, flow_id = self._claim(cid)  # from here to the stream's place in the session: one step (race 3)
        conversation = session.conversation
        over = _started(self._loop).create_future()
        self._responses.add(over)
        if session.stream is not None:
            session.stream.end("replaced")
        stream = session.stream = Stream(session, last_event_id)
        try:
            conversation.subscribe(MARKS[session.mark], "mark", instance_id=INSTANCE)
            if flow_id is not None:
                await self._run_boot(conversation, flow_id)
            await stream.respond(
                scope,
                receive,
                send,
                heartbeat=lambda: self._heartbeat(session),
                heartbeat_seconds=self._heartbeat_seconds,
                send_seconds=self._send_seconds,
                farewell_seconds=min(self._send_seconds, self._drain_seconds),
            )
        except stube.ConversationEnded:
            raise _gone()
        finally:
            if session.stream is stream:
                session.stream = None
                self._cut(session)
            self._responses.discard(over)
            over.set_result(None)

    def _claim(self, cid: str) -> tuple[Session, Any | None]:
        """The session that a stream may be attached to, and the flow that it must boot if it is the first."""
        if self._closing:
            raise HTTPException(503, "The server is shutting down. Load the page anew in a moment.")
        session = self._sessions.get(cid)
        if session is None or session.conversation.ended:
            raise _gone()
        flow_id = session.conversation.take_flow()
        timer, session.timer = session.timer, None
        # Whoever has the baton is the first, and a sweep that has begun finds none (race 1). Without it the timer
        # decides (race 2). One that can no longer be cancelled has begun, or somebody cancelled it, or the registry
        # was reset: either way nothing else may end the conversation.
        if timer is not None and not timer.cancel() and flow_id is None:
            session.conversation.end()
            raise _gone()
        return session, flow_id

    async def _run_boot(self, conversation: stube.Conversation, flow_id: Any) -> None:
        try:
            if _awaits(self.registry) or inspect.iscoroutinefunction(self._boot):
                answer = self._boot(conversation, flow_id)
            else:
                answer = await run_in_threadpool(self._boot, conversation, flow_id)
            if answer is not None:
                await answer
        except BaseException:
            conversation.end()  # half a boot has nobody who would end it
            raise

    def _heartbeat(self, session: Session) -> ServerSentEvent:
        conversation, old = session.conversation, MARKS[session.mark]
        session.mark = 1 - session.mark
        try:
            # The new one first: a reset at any moment loses one that is looked for.
            conversation.subscribe(MARKS[session.mark], "mark", instance_id=INSTANCE)
            if not conversation.unsubscribe(old, instance_id=INSTANCE):
                conversation.end()
        except (stube.ConversationEnded, stube.RegistryClosed):
            conversation.end()
        return ServerSentEvent(comment="heartbeat")

    def _cut(self, session: Session) -> None:
        conversation = session.conversation
        if self._closing:
            return  # it is about to end
        try:
            self._arm(session, "gone", self._grace_seconds)
            if not conversation.unsubscribe(MARKS[session.mark], instance_id=INSTANCE):
                conversation.end()  # the registry was reset meanwhile
        except (stube.ConversationEnded, stube.RegistryClosed, stube.RegistryFull):
            # No room for the timer that would end it, so it ends now: nothing lives without an end in sight.
            conversation.end()

    async def _watch(self, server_is_stopping: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        look = loop.time() + self._heartbeat_seconds
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._closing and server_is_stopping():
                self.close_streams()
            if loop.time() >= look:
                self._end_forgotten(loop.time())
                look = loop.time() + self._heartbeat_seconds

    def _end_forgotten(self, now: float) -> None:
        """End what nothing will end any more: a handler may cancel every timer of its conversation, ours included."""
        for session in list(self._sessions.values()):
            # To look costs as much as the registry is large, so only where the timer should have come by now.
            if session.stream is None and now > session.due + self._heartbeat_seconds:
                held = self.registry.inspect(session.conversation.cid).get(session.conversation.cid)
                ours = held is not None and any(timer.instance_id == INSTANCE for timer in held.timers)
                if not ours and (held is None or not held.running):
                    session.conversation.end()

    async def _drain(self, registry: stube.Backend, ours: bool) -> None:
        """End what lives and wait for what runs, within the time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_seconds

        def left() -> float:
            return max(0.0, until - loop.time())

        self._closing = True
        self._close_streams()
        if self._responses:
            await asyncio.wait(list(self._responses), timeout=left())
        if _awaits(registry):
            self._end_all()
            try:
                stopped = await registry.settled(left())
            finally:  # a virtual clock that somebody moves at this moment refuses to settle
                if ours:
                    stopped = await registry.aclose(left())
        else:
            # A worker of our own: the loop's may all be busy with the handlers that are waited for.
            with _worker() as call:
                await call(self._end_all)
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

    def _end_all(self) -> None:
        for conversation in self._conversations or ():
            conversation.end()


class _StreamResponse(Response):
    """A stream from beginning to end, all of it when it is called: one that never is has claimed nothing."""

    def __init__(self, host: Host, cid: str) -> None:
        super().__init__()
        self._host, self._cid = host, cid

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            raise HTTPException(405)  # who only asks whether it is there must not take the baton
        await self._host._connect(self._cid, Headers(scope=scope).get("last-event-id", ""), scope, receive, send)


def conversation_stream(request: HTTPConnection, cid: str) -> Response:
    """`Host.stream` of the application that a request came to.

    Args:
        request: the request.
        cid: the conversation, as the page names it.

    Raises:
        RuntimeError: the application has no `Host`.
    """
    host: Host | None = getattr(request.app.state, "stube", None)
    return _started(host).stream(cid)


def _nowhere(cid: str, event: stube.Event) -> None:
    """What a registry calls that has no host any more."""


def _open_registry(spec: str | Mapping[str, object] | stube.Backend | None) -> stube.Backend:
    if spec is None:
        return stube.registry_from_env()
    return stube.create_registry(spec) if isinstance(spec, str | Mapping) else spec


def _awaits(registry: stube.Backend) -> TypeIs[stube.AsyncBackend | stube.VirtualBackend]:
    return stube.is_async(registry) or stube.is_virtual(registry)


@contextmanager
def _worker() -> Iterator[Callable[[Callable[[], T]], Awaitable[T]]]:
    """A thread beside the loop: gives `call`, which runs a function there and is awaited."""
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
    return HTTPException(404, "This conversation has ended, or never was. Load the page anew.")


def _shutting_down() -> stube.RegistryClosed:
    return stube.RegistryClosed(
        "The host is shutting down, so no conversation can be opened. Load the page anew in a moment."
    )


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
