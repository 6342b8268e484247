"""What a conversation has sent to its page: kept for a while, numbered, and written to whoever is connected.

There is one buffer per conversation and no queue beside it. A stream is a reader of the buffer with a position in it,
and so is a page that is cut: its position is the `Last-Event-ID` that it brings along. What leaves the bounded buffer
before a reader got there is missed, and the reader is told so: a page by `gap`, a stream by being cut.
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
"""The event that says: some were missed. Its data is `{"missed": n}`, or null for n where that is unknown."""
BYE = "bye"
"""The event that is a stream's last. Its data is `{"reason": why}`."""
ENDED = "ended"
"""The reason when the conversation has ended."""


class Behind(Exception):  # noqa: N818 - a state that is met, not a mistake
    """What a reader would need next has left the buffer."""


def body_of(event: str, data: str) -> bytes:
    """An event in the form in which it is sent, but for its id. Raises what `Host.send` says."""
    for name, value in (("event", event), ("data", data)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {value!r}. Make a text of it, with json.dumps say.")
    if not event or "\r" in event or "\n" in event:
        raise ValueError(f"event must be a name on one line, not {event!r}. Put the rest into the data.")
    if event in (BYE, GAP):
        raise ValueError(f"The event name {event!r} is the stream's own. Choose another name.")
    try:
        return ServerSentEvent(data, event=event).encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"The event {event!r} has half a surrogate pair at character {exc.start}, which UTF-8 cannot hold. "
            "Send it as JSON with json.dumps, which writes it in ASCII."
        ) from exc


class Session:
    """What the host keeps of a conversation from its opening until it has ended.

    Args:
        conversation: whose it is.
        limit: how many events the buffer holds.
        loop: where the streams are.
    """

    __slots__ = (
        "_buffer", "_last", "_lock", "_loop", "_waking", "conversation", "due", "mark", "stream", "timer", "token",
    )  # fmt: skip

    def __init__(self, conversation: stube.Conversation, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.conversation = conversation
        # In every event id, so that no id of another conversation or of another run of the server fits here.
        self.token = secrets.token_hex(8)
        self._loop = loop
        # Guards the next three. Re-entrant, for a finalizer may send in the middle of another call.
        self._lock = threading.RLock()
        self._buffer: deque[bytes] = deque(maxlen=limit)
        self._last = 0  # the number of the newest event; the first is 1
        self._waking = False  # whether the stream will look into the buffer once more in any case
        # Written on the loop only, the first two also before anybody knows of the session.
        self.timer: stube.TimerHandle | None = None
        """What ends the conversation while no stream is connected: the sweep or the grace timer."""
        self.due = 0.0
        """When that should have happened, by the loop's clock."""
        self.stream: Stream | None = None
        """The connected stream."""
        self.mark = 0
        """Which of the host's marks the conversation has in the registry while a stream is connected."""

    def frame(self, number: int, event: str, data: Any) -> bytes:
        """An event of the stream's own. Its id is that of the event before it, for it is not part of the sequence."""
        return self._id(number) + ServerSentEvent(json.dumps(data), event=event).encode()

    def add(self, body: bytes) -> None:
        """Number an event and keep it for the stream. Any thread; waits for nobody."""
        with self._lock:
            self._last += 1
            self._buffer.append(self._id(self._last) + body)
            # A stream that connects after this line looks into the buffer by itself.
            stream = self.stream
            if stream is None or self._waking:
                return
            self._waking = True
        if asyncio._get_running_loop() is self._loop:
            stream.wake()  # a call from another thread costs a write to the loop's pipe
            return
        try:
            self._loop.call_soon_threadsafe(stream.wake)
        except RuntimeError:
            pass  # the loop has closed: nobody is connected any more

    def after(self, number: int) -> bytes | None:
        """The event that follows `number`; None when it has not been sent yet.

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
        """After which number a page goes on, and how many it missed; `last_event_id` is "" for a page that saw nothing.

        None for how many when the id was never given out here. Then nothing is repeated, for what the page has seen is
        as unknown.
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
        session: whose events it sends.
        last_event_id: what the page has seen, "" for nothing.
    """

    def __init__(self, session: Session, last_event_id: str) -> None:
        self._session = session
        self._position, self._missed = session.resume(last_event_id)
        self._wake = asyncio.Event()
        self._reason = ""
        self._stop_within: Callable[[], None] | None = None

    def wake(self) -> None:
        """Look whether there is something to send."""
        self._wake.set()

    def end(self, reason: str) -> None:
        """Say why and end. Idempotent: the first reason stands.

        A page whose conversation has ended is sent what was meant for it before. One that is replaced, or has to load
        anew, gets the farewell at once.
        """
        if not self._reason:
            self._reason = reason
            self._wake.set()
            if self._stop_within is not None:
                self._stop_within()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """What is sent, in the form of server-sent events; the last is the farewell."""
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
        """Send until the farewell, until the page is gone, or until it does not take what is sent to it."""
        loop = asyncio.get_running_loop()
        try:
            async with (
                aclosing(self.events()) as events,
                asyncio.timeout(farewell_seconds if self._reason else None) as limit,
            ):
                self._stop_within = lambda: limit.reschedule(loop.time() + farewell_seconds)
                try:
                    # When the server stops is the host's to say, so the library is told to wait for it for ever.
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
            pass  # stalled, or gone; it may come back
