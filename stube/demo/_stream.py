"""One connected page: what waits to be sent to it, and the response that sends it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

QUEUE_LIMIT = 256
"""Messages that may wait for one page. Four minutes of the clock; a page so far behind is not being read."""

SEND_TIMEOUT_SECONDS = 10.0
"""How long one message may stand in a full socket before the connection is given up."""


class Stream:
    """The messages that wait for one page. Made and touched on the server's loop only, so it needs no lock.

    It is bounded: when a client stalls, the stream ends rather than skip a message that the page would never
    know it missed. The page then connects again and resumes.
    """

    def __init__(self) -> None:
        # One place more than send() fills, so that the farewell always fits.
        self._queue: asyncio.Queue[tuple[str, Mapping[str, Any]]] = asyncio.Queue(QUEUE_LIMIT + 1)
        self._closed = False

    def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Let the page know; ends the stream when too much waits already."""
        if self._closed:
            return
        if self._queue.qsize() >= QUEUE_LIMIT:
            self.close("stalled")
        else:
            self._queue.put_nowait((kind, data))

    def close(self, reason: str) -> None:
        """Say why, and end after what waits already has been sent. Idempotent: the first reason stands."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(("bye", {"reason": reason}))

    async def messages(self) -> AsyncIterator[str]:
        """What is sent, in order and in the form of server-sent events; ends after the farewell."""
        kind = ""
        while kind != "bye":
            kind, data = await self._queue.get()
            # ASCII on one line, so that neither a line break nor half a surrogate pair in somebody's message
            # can break a stream.
            yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"


class StreamResponse(StreamingResponse):
    """The response of one stream. Calls `on_over` once it is over, however that came about."""

    def __init__(self, stream: Stream, on_over: Callable[[], None]) -> None:
        # The second header asks a proxy not to gather the events into larger pieces.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream.messages(), media_type="text/event-stream", headers=headers)
        self._on_over = on_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded_send(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await send(message)

        # on_over here and not in messages(): a generator that was never started runs no `finally`, and a
        # client may well be gone before the first message.
        try:
            await super().__call__(scope, receive, bounded_send)
        except* (TimeoutError, ClientDisconnect):
            pass  # stalled, or gone; it may come back
        finally:
            self._on_over()
