"""Rounds of chaos: many threads and unruly handlers on one registry, which must be whole when they are done.

A round has a registry of its own. Threads perform operations at random, all over a few names so that they collide;
the handlers block, raise whatever can be raised, re-arm themselves, end conversations and perform every operation as
well. Then everything is ended, and the recorded history must agree with the registry's own figures (`audit`). Some
rounds close the registry while all of this is running.

The seed decides what each thread does. The outcome also depends on the scheduler of the system.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import override

from stube import (
    Backend,
    Conversation,
    ConversationEnded,
    Conversations,
    Event,
    RegistryClosed,
    RegistryFull,
    is_virtual,
)
from stube.testing._chaos.audit import Books, differences, negative_figures
from stube.testing._chaos.failures import Failures
from stube.testing._harness import (
    HOUR,
    PATIENCE,
    RandomSteps,
    ThreadChances,
    UniqueIds,
    live_threads,
    switching_often,
)
from stube.testing._harness import create as create_backend
from stube.testing._history.recorder import RecordedHandle, RecordedRegistry

__all__ = ["ChaosFailed", "ChaosFigures", "chaos"]

_CIDS: Final = tuple(f"c{number}" for number in range(1, 9))
_INSTANCES: Final = ("i1", "i2")
_TOPICS: Final = ("t1", "t2", "t3")
_DELAYS: Final = (0, 0, 0, 0.2, 1, 1, 3, HOUR, HOUR)  # milliseconds
_SHORT, _LONG = 0.0003, 0.02  # seconds for which a handler blocks; a single delivery thread delivers nothing then
_BACKLOG: Final = 1_000  # messages; behind more a thread waits instead of publishing, or the end would take minutes
_SMALL: Final = 150  # timers and messages, where a round is to meet `RegistryFull`
_HANDLES: Final = 50  # that are kept for cancelling
_MOST_FINDINGS: Final = 20  # a registry that is always wrong would fill the memory
_CLOCK: Final = "clock"  # the timers that re-arm themselves
_LAST: Final = "last"  # the timer that shows that a registry still works

# How often each step of a thread is taken.
_STEPS: Final[Mapping[str, float]] = {
    "schedule": 16,
    "schedule by handle": 8,
    "start a clock": 2,
    "cancel handle": 8,
    "cancel timers": 2,
    "subscribe": 9,
    "subscribe by handle": 5,
    "unsubscribe": 3,
    "remove": 0.7,
    "publish": 10,
    "put": 4,
    "put by handle": 2,
    "take": 4,
    "forget": 2,
    "end": 0.7,
    "read everything": 4,
    "settle or join": 2,
    "install": 1,
    "reset": 0.2,
}
# And of a handler. Few of them operate, so that the messages which follow from one message come to an end.
_REACTIONS: Final[Mapping[str, float]] = {
    "nothing": 60,
    "operate": 20,
    "block": 8,
    "block for long": 0.1,
    "wait for others": 0.3,
    "raise": 8,
    "return a coroutine": 1,
    "end": 1,
}


class ChaosFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A registry was not whole after a round, or did not come to rest. The text has the seed and what differs."""


@dataclass
class ChaosFigures:
    """The figures of one round, or the sum of several."""

    rounds: int = 0
    operations: int = 0
    deliveries: int = 0
    failures: int = 0
    """Among the deliveries."""

    def __add__(self, other: ChaosFigures) -> ChaosFigures:
        return ChaosFigures(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @override
    def __str__(self) -> str:
        return (
            f"{self.rounds:,} rounds, {self.operations:,} operations, {self.deliveries:,} deliveries, "
            f"{self.failures:,} of them made to fail"
        )


def chaos(
    spec: str | Mapping[str, Any] = "memory",
    options: Mapping[str, Any] | None = None,
    *,
    threads: int = 16,
    operations: int = 400,
    seed: int = 0,
    patience: float = PATIENCE,
) -> ChaosFigures:
    """Perform one round on a fresh registry and return its figures.

    Args:
        spec: as `create_registry` takes it. The backend must deliver by itself, so it cannot have a virtual clock. An
            asyncio backend is served by an event loop in a thread of its own.
        options: further options. `on_error` is used by the round, and every third seed gives a small `max_pending`.
        threads: how many call at the same time.
        operations: of each.
        seed: decides what the threads and the handlers do. Every second seed resets now and then, every fifth closes
            the registry while the threads run.
        patience: seconds to wait for something that must happen, before it counts as never.

    Raises:
        ChaosFailed: an operation raised what it must not, a thread hangs, the registry does not come to rest, or its
            figures are wrong: calls of dispatch, the ledger, fates of timers, errors in the log, what is left in its
            containers, threads that stay behind.
        ValueError: the registry has a virtual clock.

    During the call the log of `stube` and the interpreter's switch interval are its own, in the whole process. A round
    takes half a second.

    >>> chaos("memory", threads=4, operations=50).rounds
    1
    """

    def create(**own: Any) -> Backend:
        if seed % 3 == 2:
            own["max_pending"] = _SMALL
        return create_backend(spec, **{**(options or {}), **own})

    before = set(live_threads())
    a_round = _Round(create, seed, threads, operations, patience)
    if is_virtual(a_round.recorded):
        a_round.recorded.close()
        raise ValueError("Chaos needs a registry that delivers by itself, and this one has a virtual clock.")
    with switching_often(), a_round.failures.listening():
        try:
            found = a_round.perform(closes=seed % 5 == 4)
        except _Stuck as exc:
            found = [str(exc), *a_round.findings]
            a_round.let_go()
            a_round.recorded.close(0)
        else:
            stayed = [thread.name for thread in set(live_threads()) - before]
            if stayed:
                found.append(f"threads that outlived the registry: {', '.join(stayed)}.")
    if found:
        lines = "\n".join(f"  {finding}" for finding in found)
        raise ChaosFailed(f"after the chaos of seed {seed} this is not as it must be:\n{lines}")
    books = a_round.books()
    return ChaosFigures(1, len(books.history.calls), books.begun, books.failed)


class _Stuck(Exception):  # noqa: N818 - a state that is met, not a mistake
    """Something that must happen does not."""


class _Outcry(BaseException):
    """An exception of a handler that is no `Exception`."""


class _NumberedRegistry(RecordedRegistry):
    """A recorded registry that gives a new id to each timer and baton that has none."""

    def __init__(self, registry: Backend) -> None:
        super().__init__(registry)
        self._new_id = UniqueIds()

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> RecordedHandle:
        if isinstance(event, str):
            event = (event, self._new_id("n"))
        return super().schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        super().put_pending_flow(cid, flow_id if isinstance(flow_id, str) else self._new_id("b"))


class _Round:
    """One round: its threads, its handlers, and the registry that they use."""

    def __init__(
        self, create: Callable[..., Backend], seed: int, threads: int, operations: int, patience: float
    ) -> None:
        self.findings: list[str] = []
        """A sentence for each thing that threads and handlers have found wrong or raised."""
        self._found = threading.Event()  # set with the first of them
        self._seed = seed
        self._threads = threads
        self._operations = operations
        self._patience = patience
        self._start_together = threading.Barrier(threads)
        self._local = threading.local()
        self._chances = ThreadChances(seed)
        self._done = [0] * threads  # how many operations each thread has completed; -1 when it has ended
        self._over = threading.Event()  # set when handlers may add nothing more, except clocks that re-arm themselves
        self._closed = threading.Event()  # set when the registry was closed, so `RegistryClosed` is expected
        self._pause = threading.Event()  # set when a hung round is given up, so that no thread blocks
        self.failures = Failures()
        self.recorded = _NumberedRegistry(create(on_error=self.failures.on_error))
        self._install()
        self._conversations = Conversations(self.recorded)
        self._awaits = "coroutine_dispatch" in self.recorded.capabilities
        self._steps = RandomSteps(
            self.recorded,
            cids=_CIDS,
            instances=_INSTANCES,
            topics=_TOPICS,
            delays=_DELAYS,
            handles=_HANDLES,
            more={
                "schedule by handle": lambda chance, cid: self._schedule_by_handle(chance, cid, "due"),
                "start a clock": lambda chance, cid: self._schedule_by_handle(chance, cid, _CLOCK),
                "subscribe by handle": lambda chance, cid: self._open(cid).subscribe(
                    chance.choice(_TOPICS), "heard", instance_id=chance.choice(_INSTANCES)
                ),
                "put by handle": lambda chance, cid: self._open(cid).put_flow(True),
                "publish": self._publish,
                "end": lambda chance, cid: self._open(cid).end(),
                "read everything": lambda chance, cid: self._read_everything(cid),
                "settle or join": self._settle_or_join,
                "install": lambda chance, cid: self._install(),
                **({} if seed % 2 else {"reset": lambda chance, cid: None}),
            },
        )

    def let_go(self) -> None:
        """Give up: let every blocked thread return."""
        self._over.set()
        self._pause.set()

    def books(self) -> Books:
        """Return the figures of the calls and deliveries up to now."""
        return Books(self.recorded.history(), self.failures.coroutines)

    def perform(self, *, closes: bool) -> list[str]:
        """Perform the round and return what is wrong at its end. Raises `_Stuck`."""
        workers = self._start("worker", self._work)
        if closes:
            self._pause.wait(random.Random(f"{self._seed} close").random() * 0.3)
            self._closed.set()
            self._close()
            self._finish(workers)
        else:
            self._finish(workers)
            self._over.set()
            self._settle("after the last operation")
            # Clocks are still ticking. They re-arm themselves through handles that are ended now, so in vain.
            self._finish(self._start("ender", self._end))
            self._settle("after every conversation was ended")
            if not self._differences():
                self._see_a_timer()
        found = self._differences()
        self._close()
        return found

    # -- phases ------------------------------------------------------------------------------------------------

    def _start(self, name: str, work: Callable[[int], None]) -> list[threading.Thread]:
        def body(number: int) -> None:
            try:
                self._start_together.wait(self._patience)
                work(number)
            except RegistryClosed as exc:
                if not self._closed.is_set():
                    self._report(exc)
            except BaseException as exc:  # noqa: BLE001 - told at the end
                self._report(exc)

        workers = [
            threading.Thread(target=body, args=(number,), name=f"chaos {name} {number}", daemon=True)
            for number in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        return workers

    def _finish(self, workers: list[threading.Thread]) -> None:
        for worker in workers:
            worker.join(self._patience)
            if worker.is_alive():
                raise _Stuck(f"{worker.name} hangs:\n{_stack_of(worker)}")

    def _settle(self, when: str) -> None:
        if not self.recorded.settle(self._patience):
            raise _Stuck(f"the registry does not settle {when}: {self._equation()}")

    def _see_a_timer(self) -> None:
        """Schedule one more timer, to see whether the registry still works. The audit tells its fate."""
        self.recorded.schedule_event(cid=_LAST, instance_id=_LAST, delay_ms=1, event=_LAST)
        if not self.recorded.join(self._patience):
            raise _Stuck(f"a timer of 1 ms is not over, and everything else is: {self._equation()}")

    def _close(self) -> None:
        if not self.recorded.close(self._patience):
            raise _Stuck("close() says that not everything has stopped")

    def _differences(self) -> list[str]:
        audited = differences(self.books(), self.recorded.registry, closed=self._closed.is_set())
        return [*self.findings, *audited, *self.failures.differences()]

    def _equation(self) -> str:
        return self.recorded.stats().equation

    def _report(self, exc: BaseException) -> None:
        told = "".join(traceback.format_exception(exc)).rstrip()
        self._find(f"{threading.current_thread().name} raised:\n{told}")

    def _find(self, sentence: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(sentence)
        self._found.set()

    # -- threads -----------------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        try:
            for _ in range(self._operations):
                if self._found.is_set():
                    break
                self._operate(chance)
                self._done[number] += 1
                if chance.random() < 0.3:
                    self._pause.wait(chance.random() * 0.003)
        finally:
            self._done[number] = -1

    def _end(self, number: int) -> None:
        # Each conversation is ended once, by one thread, so no other thread can remove what that end overlooks.
        for cid in _CIDS[number :: self._threads]:
            self._open(cid).end()

    def _operate(self, chance: random.Random, cid: str | None = None) -> None:
        """Perform one operation, for a thread or for a handler."""
        try:
            self._steps.perform(chance, _STEPS, cid)
        except (RegistryFull, ConversationEnded):
            pass

    def _open(self, cid: str) -> Conversation:
        return self._conversations.open(cid)

    def _install(self) -> None:
        """Install the dispatch, each time as another object."""
        self.recorded.install_dispatch(self.failures.watched(self._handle))

    def _schedule_by_handle(self, chance: random.Random, cid: str, name: str) -> None:
        handle = self._open(cid).schedule(name, chance.choice(_DELAYS), instance_id=chance.choice(_INSTANCES))
        self._steps.keep(chance, handle)

    def _publish(self, chance: random.Random, cid: str) -> None:
        if self._delivering() or self.recorded.stats().queued < _BACKLOG:
            self.recorded.publish(chance.choice(_TOPICS), self._steps.new_id("m"))
        else:
            self.recorded.settle(_LONG)

    def _read_everything(self, cid: str) -> None:
        """Take every snapshot. Inside a delivery the snapshot must show that delivery."""
        for sentence in negative_figures(self.recorded.stats()):
            self._find(sentence)
        self.recorded.subscriptions()
        self.recorded.inspect()
        running = {name for name, info in self.recorded.inspect(cid).items() if info.running}
        if self._delivering() == cid and running != {cid}:
            self._find(f"inspect({cid!r}) shows no running delivery, and was asked by one.")

    def _settle_or_join(self, chance: random.Random, cid: str) -> None:
        """Wait for a moment. Inside a delivery, which would wait for itself, the registry must refuse."""
        wait = chance.choice((self.recorded.settle, self.recorded.join))
        try:
            wait(_LONG)
        except RuntimeError:
            if not self._delivering():
                raise
        else:
            if self._delivering():
                self._find(f"G24: {wait.__name__}() inside a delivery did not raise.")

    # -- handlers ----------------------------------------------------------------------------------------------

    def _delivering(self) -> str:
        """The conversation whose delivery the calling thread runs; empty when it runs none."""
        return getattr(self._local, "cid", "")

    def _handle(self, cid: str, event: Event) -> Any:
        if event.name == _LAST:
            return None
        self._local.cid = cid
        try:
            return self._react(self._chances.mine(), cid, event)
        finally:
            self._local.cid = ""

    def _react(self, chance: random.Random, cid: str, event: Event) -> Any:
        if event.name == _CLOCK:
            conversation = self._conversations.get(cid)
            if conversation is not None:
                self._pause.wait(chance.choice((0, 0, _SHORT)))  # here another thread may end it
                delay_ms = chance.choice((0.3, 1, 2))
                self._steps.keep(chance, conversation.schedule(_CLOCK, delay_ms, instance_id=event.instance_id))
        match chance.choices(tuple(_REACTIONS), tuple(_REACTIONS.values()))[0]:
            case "block":
                self._pause.wait(chance.random() * _SHORT)
            case "block for long":
                self._pause.wait(_LONG)
            case "wait for others":
                self._wait_for(chance.randrange(self._threads))
            case "raise":
                raise self._something(chance)
            case "return a coroutine":
                return None if self._awaits else _nothing()
            case "end" if not self._over.is_set():
                self._open(chance.choice((cid, chance.choice(_CIDS)))).end()
            case "operate" if not self._over.is_set():
                for _ in range(chance.choice((1, 1, 3))):
                    self._operate(chance, chance.choice((cid, chance.choice(_CIDS))))
        return None

    def _something(self, chance: random.Random) -> BaseException:
        kinds: list[Callable[[str], BaseException]] = [
            LookupError, ConversationEnded, RegistryFull, StopIteration, SystemExit, GeneratorExit, _Outcry,
            MemoryError, asyncio.CancelledError, lambda text: BaseExceptionGroup(text, [_Outcry()]),
        ]  # fmt: skip
        if not self._awaits:  # an event loop would end its thread
            kinds.append(KeyboardInterrupt)
        return chance.choice(kinds)("part of the chaos")

    def _wait_for(self, number: int) -> None:
        """Hold the delivery up until a certain thread has completed an operation, which may not wait for it (G21)."""
        before = self._done[number]
        for _ in range(int(self._patience / _SHORT / 10)):
            if before < 0 or self._done[number] != before or self._found.is_set() or self._closed.is_set():
                return
            self._pause.wait(_SHORT)  # there is no event for "some operation is over"
        self._find(f"G21: no operation of worker {number} ended while a delivery was held up.")


async def _nothing() -> None:
    """The coroutine that a handler returns to a registry which cannot await it."""


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "  (it has just ended)"
