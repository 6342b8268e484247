"""A recorded history of threads and handlers that perform random operations."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Final

from stube import Backend, ConversationEnded, Event, is_virtual
from stube.testing._harness import (
    HOUR,
    PATIENCE,
    RandomSteps,
    ThreadChances,
    blame,
    blamed_by,
    failures_unlogged,
    settles,
    switching_often,
    while_it_advances,
)
from stube.testing._history.recorder import RecordedRegistry
from stube.testing._history.records import History

__all__ = ["HistoryFailed", "random_history"]

_CIDS: Final = ("c1", "c2", "c3")
_INSTANCES: Final = ("i1", "i2")
_TOPICS: Final = ("t1", "t2")
_DELAYS: Final = (0, 0, 0, 0.2, 1, 1, 2, 3, HOUR, HOUR)  # milliseconds
_LONGEST_WAIT: Final = 4  # milliseconds; longer than every delay but the hour's
_HANDLES: Final = 8  # few, so that often two threads cancel the same timer
_CLOSING: Final = "closing"  # the conversation of the timer that ends a history

# How often each step of a thread is taken. `mostly` multiplies the weights of one part by _MORE.
_PARTS: Final[Mapping[str, Mapping[str, float]]] = {
    "batons": {"put": 6, "take": 7, "forget": 2},
    "timers": {"schedule": 24, "cancel handle": 8, "cancel timers": 7},
    "topics": {"publish": 16, "subscribe": 16, "unsubscribe": 6, "remove": 2, "read subscriptions": 2},
    "all": {"reset": 0.6},
}
_MORE: Final = 12
# And of a handler. Few of them publish, so that the messages which follow from one message come to an end.
_REACTIONS: Final[Mapping[str, float]] = {
    "nothing": 67,
    "schedule": 8,
    "cancel timers": 3,
    "publish": 3,
    "unsubscribe": 3,
    "remove": 1,
    "take": 2,
    "wait": 10,
    "raise": 3,
}


class HistoryFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A history could not be brought to its end; what was recorded until then may tell why."""

    def __init__(self, reason: str, history: History) -> None:
        super().__init__(reason)
        self.history = history
        """Incomplete."""


def random_history(
    registry: Backend, *, threads: int = 4, operations: int = 200, seed: int = 0, mostly: str | None = None
) -> History:
    """Let threads and handlers perform random operations on a fresh registry; return the complete history.

    Args:
        registry: a backend that nothing else uses. On a virtual clock one more thread moves the clock.
        threads: how many.
        operations: of each thread; on a virtual clock at most a few thousand, because all may fall on one instant.
        seed: decides what each thread does. The outcome also depends on the scheduler of the system.
        mostly: `"batons"`, `"timers"` or `"topics"`; None for all alike.

    Raises:
        HistoryFailed: an operation raised, a thread hangs, or the registry does not come to rest.

    During the call the interpreter switches threads as often as it can, in the whole process. The handlers fail on
    purpose; their failures are not logged. It takes about 50 µs for an operation, and 10 ms for the last timers.
    """
    workload = _Workload(registry, seed, mostly)
    workers = [
        threading.Thread(target=workload.run, args=(number, operations), name=f"thread {number}", daemon=True)
        for number in range(threads)
    ]
    with switching_often(), failures_unlogged():
        for worker in workers:
            worker.start()
        try:
            workload.move_until_over(workers)
            workload.come_to_rest()
        except Exception as exc:
            failed = HistoryFailed(f"seed {seed}: {exc}", workload.recorded.history())
            raise blame(failed, blamed_by(exc) or ["G21"]) from exc
    return workload.recorded.history(complete=True)


class _Workload:
    """The threads and the handlers of one history."""

    def __init__(self, registry: Backend, seed: int, mostly: str | None) -> None:
        self.recorded = RecordedRegistry(registry)
        self._errors: list[BaseException] = []
        self._registry = registry
        self._clock = registry if is_virtual(registry) else None
        self._seed = seed
        self._chances = ThreadChances(seed)
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._pause = threading.Event()  # never set: waiting for it slows the threads down against the deliveries
        self._weights = {
            name: weight * (_MORE if part == mostly else 1)
            for part, steps in _PARTS.items()
            for name, weight in steps.items()
        }
        self._steps = RandomSteps(
            self.recorded,
            cids=_CIDS,
            instances=_INSTANCES,
            topics=_TOPICS,
            delays=_DELAYS,
            handles=_HANDLES,
            more={"nothing": lambda chance, cid: None, "wait": self._wait, "raise": _raise},
        )
        self.recorded.install_dispatch(self._handle)

    def run(self, number: int, operations: int) -> None:
        """Perform the operations of one thread."""
        chance = random.Random(f"{self._seed} {number}")
        try:
            for _ in range(operations):
                self._steps.perform(chance, self._weights)
                if chance.random() < 0.03:
                    self._pause.wait(chance.random() * 0.001)
        except BaseException as exc:  # noqa: BLE001 - handed to the caller
            self._errors.append(exc)

    def move_until_over(self, workers: list[threading.Thread]) -> None:
        """Wait for the threads. A virtual clock is moved until they have ended, by the calling thread."""
        chance = random.Random(f"{self._seed} clock")
        if self._clock is not None:
            while any(worker.is_alive() for worker in workers):
                self._clock.advance(chance.choice((0.1, 0.3, 1)))
                self._pause.wait(0.0003)
        for worker in workers:
            worker.join(PATIENCE)
        if any(worker.is_alive() for worker in workers):
            raise TimeoutError("a thread hangs")
        if self._errors:
            raise self._errors[0]

    def come_to_rest(self) -> None:
        """Wait until every timer of less than an hour and everything ready is delivered. Handlers do nothing now."""
        self._closing.set()
        if self._clock is not None:
            self._clock.advance(_LONGEST_WAIT)
            return
        self.recorded.schedule_event(
            cid=_CLOSING, instance_id=_CLOSING, delay_ms=_LONGEST_WAIT, event=(_CLOSING, _CLOSING)
        )
        if not while_it_advances(self._registry, self._closed.wait):
            raise blame(TimeoutError(f"a timer of {_LONGEST_WAIT} ms does not fire"), ["G10"])
        if not settles(self._registry):
            raise blame(TimeoutError(f"the registry does not settle: {self._registry.stats().equation}"), ["G10"])

    def _handle(self, cid: str, event: Event) -> None:
        """Deliver: most handlers do nothing, some perform an operation on the conversation of the delivery."""
        if cid == _CLOSING:
            self._closed.set()
        elif not self._closing.is_set():
            self._steps.perform(self._chances.mine(), _REACTIONS, cid)

    def _wait(self, chance: random.Random, cid: str) -> None:
        self._pause.wait(chance.random() * 0.0005)


def _raise(chance: random.Random, cid: str) -> None:
    raise chance.choice((LookupError, ConversationEnded))("part of the history")
