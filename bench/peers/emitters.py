"""Other libraries that deliver a message to many: each peer builds the same `Event` and calls the same dispatch.

All but two deliver inside the call of publish, so that the caller pays for every subscriber. A handler that raises then
ends the publication, and two threads that publish at the same time deliver in no defined order. Therefore these peers
are faster with few subscribers, and lack these promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from typing_extensions import override

from bench.subjects import ignore
from stube import Event

__all__ = ["BareEmitter", "Blinker", "Channels", "Emitter", "FanOutPeer", "Psygnal", "ThreadPool"]


class FanOutPeer(Protocol):
    """One topic with its subscribers, created for each round."""

    name: str
    needs: str | None
    """The module that it needs; None for the standard library."""
    most: int | None
    """The largest number of deliveries with which it is measured; None for as many as a target says."""
    widest: int | None
    """The largest number of subscribers with which it is measured; None for any number."""

    def __init__(self, subscribers: int) -> None: ...

    def publish(self, message: Any) -> None:
        """Publish one message; return when the caller may continue."""
        ...

    def run(self, messages: int) -> None:
        """Publish `messages` messages, and return when every subscriber has received all of them."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class _InTheCaller:
    """A peer that delivers inside the call of publish."""

    most: int | None = None
    widest: int | None = None

    def close(self) -> None:
        pass


def _listener(cid: str) -> Callable[[Any], None]:
    return lambda message: ignore(cid, Event("main", "said", message))


class Emitter(_InTheCaller):
    """pyee's `EventEmitter`.

    It lacks isolation, an order across threads, back-pressure, counts, conversations, and cancelling of queued
    messages, because it queues none. It reports a message without a subscriber.
    """

    name = "pyee"
    needs: str | None = "pyee"

    def __init__(self, subscribers: int) -> None:
        from pyee import EventEmitter

        emitter = EventEmitter()
        for number in range(subscribers):
            emitter.add_listener("topic", self._listener(f"s{number}"))
        self.emit = emitter.emit

    def _listener(self, cid: str) -> Callable[[Any], None]:
        return _listener(cid)

    def publish(self, message: Any) -> None:
        self.emit("topic", message)

    def run(self, messages: int) -> None:
        emit = self.emit
        for number in range(messages):
            emit("topic", number)


class BareEmitter(Emitter):
    """pyee with callbacks that take a tuple and do nothing: no event is built, and no dispatch is called."""

    name = "pyee, a bare callback"

    @override
    def _listener(self, cid: str) -> Callable[[Any], None]:
        return lambda message: None

    @override
    def run(self, messages: int) -> None:
        emit = self.emit
        for number in range(messages):
            emit("topic", ("main", "said", number))


class Blinker(_InTheCaller):
    """blinker's `Signal`.

    It lacks what pyee lacks, and the order of subscribers.
    """

    name = "blinker"
    needs: str | None = "blinker"

    def __init__(self, subscribers: int) -> None:
        from blinker import Signal

        self.signal = Signal()
        for number in range(subscribers):
            self.signal.connect(self._receiver(f"s{number}"), weak=False)

    def _receiver(self, cid: str) -> Callable[..., None]:
        return lambda sender, message: ignore(cid, Event("main", "said", message))

    def publish(self, message: Any) -> None:
        self.signal.send("topic", message=message)

    def run(self, messages: int) -> None:
        send = self.signal.send
        for number in range(messages):
            send("topic", message=number)


class Psygnal(_InTheCaller):
    """psygnal's `SignalInstance`, compiled.

    It lacks what pyee lacks; a topic is an attribute of a class, not a name.
    """

    name = "psygnal"
    needs: str | None = "psygnal"

    def __init__(self, subscribers: int) -> None:
        from psygnal import Signal

        class Topic:
            said = Signal(object)

        self.topic = Topic()
        for number in range(subscribers):
            self.topic.said.connect(_listener(f"s{number}"))

    def publish(self, message: Any) -> None:
        self.topic.said.emit(message)

    def run(self, messages: int) -> None:
        emit = self.topic.said.emit
        for number in range(messages):
            emit(number)


class ThreadPool:
    """A task of a thread pool for each delivery.

    It lacks any order, one delivery at a time for a conversation, a bound, and cancelling by conversation. A failure
    stays in a future that no code reads. The caller pays for every subscriber.
    """

    name = "a thread-pool task each"
    needs: str | None = None
    most: int | None = 50_000
    widest: int | None = None

    def __init__(self, subscribers: int) -> None:
        self.cids = [f"s{number}" for number in range(subscribers)]
        self.pool = ThreadPoolExecutor()

    def publish(self, message: Any) -> None:
        submit = self.pool.submit
        for cid in self.cids:
            submit(ignore, cid, Event("main", "said", message))

    def run(self, messages: int) -> None:
        for number in range(messages):
            self.publish(number)
        self.pool.shutdown()

    def close(self) -> None:
        self.pool.shutdown()


class Channels:
    """Django Channels with its layer in memory: a channel, and a consumer that awaits it, for each conversation.

    It lacks calls from other threads, and a promise of delivery, because a full channel drops messages silently. Each
    message is copied for each subscriber. Groups forget their members after a day. The caller pays for every
    subscriber.
    """

    name = "Django Channels, in memory"
    needs: str | None = "channels"
    most: int | None = 5000
    widest: int | None = 1000  # each send searches all channels for expired messages

    def __init__(self, subscribers: int) -> None:
        self.subscribers = subscribers
        self.loop = asyncio.new_event_loop()
        self.left = 0
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        from channels.layers import InMemoryChannelLayer

        self.layer: Any = InMemoryChannelLayer()
        self.over = asyncio.Event()
        self.consumers = []
        for number in range(self.subscribers):
            channel = await self.layer.new_channel()
            await self.layer.group_add("topic", channel)
            self.consumers.append(self.loop.create_task(self._consume(f"s{number}", channel)))

    async def _consume(self, cid: str, channel: str) -> None:
        while True:
            message = await self.layer.receive(channel)
            ignore(cid, Event("main", "said", message["text"]))
            self.left -= 1
            if not self.left:
                self.over.set()

    async def _send(self, messages: int) -> None:
        self.left += messages * self.subscribers
        for number in range(messages):
            await self.layer.group_send("topic", {"type": "said", "text": number})
        await asyncio.wait_for(self.over.wait(), 60)

    def publish(self, message: Any) -> None:
        self.left += self.subscribers
        self.loop.run_until_complete(self.layer.group_send("topic", {"type": "said", "text": message}))

    def run(self, messages: int) -> None:
        self.loop.run_until_complete(self._send(messages))

    def close(self) -> None:
        for consumer in self.consumers:
            consumer.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.consumers, return_exceptions=True))
        self.loop.close()
