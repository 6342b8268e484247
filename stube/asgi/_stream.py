"""The buffer of the events that a conversation has sent to its page, and the stream that writes them to the page.

Each conversation has one bounded buffer of numbered events and no queue beside it. A stream reads the buffer and has a
position in it. So does a page whose stream was cut: its position is the `Last-Event-ID` with which it comes back. An
event may leave the buffer before a reader has reached it. Then a page is told by `gap` that it has missed events, and a
stream is cut.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

import stube

__all__ = ["BYE", "ENDED", "GAP", "Behind", "Session", "Stream", "body_of"]

GAP = "gap"
"""The event that reports missed events. Its data is `{"missed": n}`, or null for n when the number is unknown."""
BYE = "bye"
"""The last event of a stream. Its data is `{"reason": why}`."""
ENDED = "ended"
"""The reason when the conversation has ended."""


class Behind(Exception):  # noqa: N818 - a state that is met, not a mistake
    """The next event for a reader has left the buffer."""


def body_of(event: str, data: str) -> bytes:
    """Encode an event as it is sent, without its id. The errors are those of `Host.send`."""
    for name, value in (("event", event), ("data", data)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {value!r}. Convert it, for example with json.dumps.")
    if not event or "\r" in event or "\n" in event:
        raise ValueError(f"event must be a name on one line, not {event!r}. Put the rest into the data.")
    if event in (BYE, GAP):
        raise ValueError(f"The event name {event!r} is the stream's own. Choose another name.")
    try:
        return ServerSentEvent(data, event=event).encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"The event {event!r} has half a surrogate pair at character {exc.start}, which UTF-8 cannot encode. "
            "Send it as JSON with json.dumps, which writes it in ASCII."
        ) from exc


class Session:
    """The host's data about a conversation, from its opening to its end.

    Args:
        conversation: its handle.
        limit: the number of events that the buffer holds.
        loop: the event loop on which the streams run.
    """

    __slots__ = (
        "_buffer", "_last", "_lock", "_loop", "_waking", "conversation", "due", "mark", "stream", "timer", "token",
    )  # fmt: skip

    def __init__(self, conversation: stube.Conversation, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.conversation = conversation
        # Part of every event id, so that the id of another conversation or of another run of the server is recognised.
        self.token = secrets.token_hex(8)
        self._loop = loop
        # Guards the next three. Re-entrant, because a finalizer may send in the middle of another call.
        self._lock = threading.RLock()
        self._buffer: deque[bytes] = deque(maxlen=limit)
        self._last = 0  # the number of the newest event; the first is 1
        self._waking = False  # True when the stream will read the buffer once more in any case
        # Written on the loop only; `open` also writes the first two, before another thread can know of the session.
        self.timer: stube.TimerHandle | None = None
        """The timer that ends the conversation while no stream is connected: the sweep or the grace timer."""
        self.due = 0.0
        """The instant at which the timer is due, on the loop's clock."""
        self.stream: Stream | None = None
        """The connected stream."""
        self.mark = 0
        """The index of the mark that the conversation has in the registry while a stream is connected."""

    def frame(self, number: int, event: str, data: Any) -> bytes:
        """Encode an event of the stream's own. It is not in the sequence, so it has the id of the event before it."""
        return self._id(number) + ServerSentEvent(json.dumps(data), event=event).encode()

    def add(self, body: bytes) -> None:
        """Number an event and keep it for the stream. Any thread; never waits."""
        with self._lock:
            self._last += 1
            self._buffer.append(self._id(self._last) + body)
            # A stream that connects after this line reads the buffer without being woken.
            stream = self.stream
            if stream is None or self._waking:
                return
            self._waking = True
        if asyncio._get_running_loop() is self._loop:
            stream.wake()  # call_soon_threadsafe would write to the loop's pipe
            return
        try:
            self._loop.call_soon_threadsafe(stream.wake)
        except RuntimeError:
            pass  # the loop has closed, and every stream with it

    def after(self, number: int) -> bytes | None:
        """Return the event that follows `number`; None when it has not been sent yet.

        Raises:
            Behind: it has left the buffer.
        """
        with self._lock:
            index = number - (self._last - len(self._buffer))
            if index < 0:
                raise Behind
            if index < len(self._buffer):
                return self._buffer[index]
            self._waking = False
            return None

    def resume(self, last_event_id: str) -> tuple[int, int | None]:
        """Return the number after which a page continues, and how many events it has missed.

        `last_event_id` is "" for a page that has seen no event. If the id is not one of this conversation's, the number
        of missed events is None, and no event is repeated, because it is unknown which ones the page has seen.
        """
        with self._lock:
            token, _, digits = last_event_id.partition("-")
            if not last_event_id:
                seen = 0
            elif token == self.token and digits.isascii() and digits.isdecimal() and len(digits) < 20:
                seen = int(digits)
            else:
                return self._last, None
            if seen > self._last:
                return self._last, None
            start = max(seen, self._last - len(self._buffer))
            return start, start - seen

    def _id(self, number: int) -> bytes:
        return f"id: {self.token}-{number}\r\n".encode()


class Stream:
    """One connected page. Made and touched on the loop only.

    Args:
        session: the session whose events it sends.
        last_event_id: the id of the last event that the page has seen; "" if it has seen none.
    """

    def __init__(self, session: Session, last_event_id: str) -> None:
        self._session = session
        self._position, self._missed = session.resume(last_event_id)
        self._wake = asyncio.Event()
        self._reason = ""
        self._stop_within: Callable[[], None] | None = None

    def wake(self) -> None:
        """Let the stream read the buffer again."""
        self._wake.set()

    def end(self, reason: str) -> None:
        """End the stream with a farewell that gives the reason. Idempotent: the first reason counts.

        If the conversation has ended, the events that were sent before are written first. In all other cases the
        farewell is the next event.
        """
        if not self._reason:
            self._reason = reason
            self._wake.set()
            if self._stop_within is not None:
                self._stop_within()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events as they are written to the page; the last is the farewell."""
        session = self._session
        if self._missed != 0:
            yield session.frame(self._position, GAP, {"missed": self._missed})
        while self._reason in ("", ENDED):
            self._wake.clear()
            try:
                event = session.after(self._position)
            except Behind:
                self.end("behind")
            else:
                if event is not None:
                    yield event
                    self._position += 1
                elif self._reason:
                    break
                else:
                    await self._wake.wait()
        yield session.frame(self._position, BYE, {"reason": self._reason})

    async def respond(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        heartbeat: Callable[[], ServerSentEvent],
        heartbeat_seconds: float,
        send_seconds: float,
        farewell_seconds: float,
    ) -> None:
        """Write events until the farewell, until the page is gone, or until it no longer reads."""
        loop = asyncio.get_running_loop()
        try:
            async with (
                aclosing(self.events()) as events,
                asyncio.timeout(farewell_seconds if self._reason else None) as limit,
            ):
                self._stop_within = lambda: limit.reschedule(loop.time() + farewell_seconds)
                try:
                    # The host decides when a stream ends, so the library itself must never end it.
                    response = EventSourceResponse(
                        events,
                        ping=heartbeat_seconds,
                        ping_message_factory=heartbeat,
                        send_timeout=send_seconds,
                        shutdown_grace_period=math.inf,
                    )
                    await response(scope, receive, send)
                finally:
                    self._stop_within = None
        except* (TimeoutError, SendTimeoutError, OSError):
            pass  # the page no longer reads, or is gone; it may come back
