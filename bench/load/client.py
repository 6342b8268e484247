"""The pages under load: many streams in one process, each of which notices lost, doubled and reordered events.

A page uses one connection. On it, it requests the page, then its stream, and then counts: ticks and messages have
numbers, so a stream can tell by itself what is missing, doubled or out of order. HTTP is parsed here by hand, and only
as much of it as the hosts use, because this process must be faster than the process that it measures.
"""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from typing_extensions import override

__all__ = ["Heard", "LoadError", "Stream", "Tally", "open_stream", "request"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class LoadError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


@dataclass
class Heard:
    """One message of the room."""

    streams: int = 0
    """The number of streams that have received it."""
    last: int = 0
    """The instant at which the last of them received it."""


@dataclass
class Tally:
    """The observations of all streams together. Instants are nanoseconds of the monotonic clock."""

    begin: int = 1 << 62
    """Ticks that are due from this instant are counted,"""
    end: int = 1 << 62
    """until this one."""
    at_handler: array[int] = field(default_factory=lambda: array("q"))
    """The lateness of each tick when its handler began."""
    at_page: array[int] = field(default_factory=lambda: array("q"))
    """The lateness of each tick when the page received it."""
    messages: dict[int, Heard] = field(default_factory=dict)
    """The messages by their numbers."""
    ticks_out_of_order: int = 0
    messages_out_of_order: int = 0
    cut: int = 0
    """Streams that the host ended."""
    gaps: int = 0
    """Gaps that hosts reported to streams."""


class Stream(asyncio.Protocol):
    """One page. `opened` is done when its stream is open, and fails if the stream cannot be opened."""

    def __init__(self, tally: Tally) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ticks = 0
        """The number of the latest tick."""
        self.messages = 0
        """The number of the latest message."""
        self.counted = 0
        """The number of ticks that were due in the measured time."""
        self.due = 0
        """The instant at which the latest tick was due."""
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._left = False
        self._cid = b""
        self._raw = b""  # as received
        self._text = b""  # without HTTP's chunks

    def leave(self) -> None:
        """Close the connection, as a browser does when its user leaves the page."""
        self._left = True
        if self._transport is not None:
            self._transport.close()

    # Called by the loop.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask(b"/")

    @override
    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._left:
            return
        self._raw += data
        if not self.opened.done():
            self._answered()
        if self.opened.done() and not self._left:
            self._dechunk()
            for name, value in self._events():
                self._take(name, value, now)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self._fail(f"The host closed a connection instead of opening its stream: {exc}.")
        elif not self._left:
            self._tally.cut += 1

    # From the page to the stream.

    def _ask(self, path: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def _answered(self) -> None:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            return
        status = head.partition(b"\r\n")[0]
        if b" 200 " not in status + b" ":
            self._fail(f"The host answered {status.decode()!r} instead of a page's stream.")
            self.leave()
        elif self._cid:
            self._raw = rest
            self.opened.set_result(None)
        else:
            length = _LENGTH.search(head)
            assert length is not None, head
            if len(rest) >= int(length[1]):
                self._cid, self._raw = rest, b""
                self._ask(b"/stream/" + self._cid)

    def _fail(self, why: str) -> None:
        self.opened.set_exception(LoadError(why))
        self.opened.exception()  # read it, because asyncio would log it if an interrupt has ended the waiting task

    # The stream.

    def _dechunk(self) -> None:
        raw, at = self._raw, 0
        while (line := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:line], 16)
            if len(raw) < line + size + 4:
                break
            self._text += raw[line + 2 : line + 2 + size]
            at = line + size + 4
            if size == 0:  # the last chunk: the host has ended the stream, although it keeps the connection
                self._tally.cut += 1
                self.leave()
        self._raw = raw[at:]

    def _events(self) -> Iterator[tuple[bytes, bytes]]:
        *frames, self._text = self._text.split(b"\r\n\r\n")
        for frame in frames:
            lines = (line.partition(b": ") for line in frame.split(b"\r\n"))
            fields = {field: value for field, _, value in lines}
            if b"event" in fields:  # otherwise it is a comment, the heartbeat
                yield fields[b"event"], fields.get(b"data", b"")

    def _take(self, name: bytes, value: bytes, now: int) -> None:
        tally = self._tally
        if name == b"tick":
            number, due, began = map(int, value.split())
            tally.ticks_out_of_order += number != self.ticks + 1
            self.ticks, self.due = number, due
            if tally.begin <= due < tally.end:
                self.counted += 1
                tally.at_handler.append(began - due)
                tally.at_page.append(now - due)
        elif name == b"said":
            number = int(value)
            tally.messages_out_of_order += number != self.messages + 1
            self.messages = number
            heard = tally.messages.setdefault(number, Heard())
            heard.streams += 1
            heard.last = now
        elif name == b"gap":
            tally.gaps += 1


async def open_stream(port: int, tally: Tally) -> Stream:
    """Connect a page, and wait until its stream is open.

    Raises:
        LoadError: the host does not respond with a stream.
        OSError: the host does not respond at all.
    """
    _, stream = await asyncio.get_running_loop().create_connection(lambda: Stream(tally), "127.0.0.1", port)
    await stream.opened
    return stream


async def request(port: int, method: str, path: str, body: str = "") -> bytes:
    """Send one request on a connection of its own, and return the body of the response.

    Raises:
        LoadError: there is no response, or its status is not 200.
    """
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}")
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(("\r\n".join(lines) + f"\r\n\r\n{body}").encode())
            answer = await reader.read()
        finally:
            writer.close()
    except OSError as exc:
        raise LoadError(f"The host does not answer to {method} {path}: {exc}. See its output above.") from exc
    head, _, content = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0]
    if b" 200 " not in status + b" ":
        raise LoadError(f"The host answered {status.decode()!r} to {method} {path}.")
    return content
