"""Many threads and unruly handlers on one registry, and whether it is whole when they are done.

A round has a registry of its own. Threads perform operations at random, all over a few names so that they collide;
the handlers block, raise whatever can be raised, re-arm themselves, end conversations and perform every operation as
well. Then everything is ended, and the books that were kept (`audit`) must agree with the registry's own. Some
rounds close the registry in the middle of it all.

What each thread does is decided by the seed; what comes of it is up to the scheduler of the system.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from stube import (
    Backend,
    Conversation,
    ConversationEnded,
    Conversations,
    Event,
    RegistryClosed,
    RegistryFull,
)
from stube.testing._chaos.audit import AuditedHandle, AuditedRegistry, negative_figures
from stube.testing._harness import PATIENCE, live_threads, switching_often
from stube.testing._harness import create as create_backend

__all__ = ["ChaosFailed", "ChaosFigures", "chaos"]

_CIDS: Final = tuple(f"c{number}" for number in range(1, 9))
_INSTANCES: Final = ("i1", "i2")
_TOPICS: Final = ("t1", "t2", "t3")
_HOUR: Final = 3_600_000  # milliseconds, that no round waits for
_DELAYS: Final = (0, 0, 0, 0.2, 1, 1, 3, _HOUR, _HOUR)  # milliseconds
_SHORT, _LONG = 0.0003, 0.02  # seconds for which a handler blocks; on one delivering thread everybody waits for it
_BACKLOG: Final = 1_000  # messages; behind more a thread waits instead of publishing, or the end would take minutes
_SMALL: Final = 150  # timers and messages, where a round is to meet `RegistryFull`
_HANDLES: Final = 50  # that are kept for cancelling
_CLOCK: Final = "clock"  # the timers that re-arm themselves
_LAST: Final = "last"  # the timer that shows that a registry still works


class ChaosFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A registry was not whole after a round, or did not come to rest. The text has the seed and what differs."""


@dataclass
class ChaosFigures:
    """What rounds came to."""

    rounds: int = 0
    operations: int = 0
    deliveries: int = 0
    failures: int = 0
    """Among the deliveries."""

    def __add__(self, other: ChaosFigures) -> ChaosFigures:
        return ChaosFigures(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

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
    """One round on a fresh registry; what it came to.

    Args:
        spec: as `create_registry` takes it. A backend that delivers by itself: not one with a virtual clock, and an
            asyncio backend only where its loop runs in another thread.
        options: more of them; `on_error` is taken, and every third seed gives a small `max_pending`.
        threads: how many call at once.
        operations: of each.
        seed: decides what the threads and the handlers do. Every second one resets now and then, every fifth closes in
            the middle.
        patience: seconds to wait for what must happen, before it counts as never.

    Raises:
        ChaosFailed: an operation raised what it must not, a thread hangs, the registry does not come to rest, or its
            books are wrong: calls of dispatch, the ledger, fates of timers, errors in the log, what is left in its
            containers, threads that stay behind.
        ValueError: the registry has a virtual clock.

    Meanwhile the log of `stube` and the interpreter's switch interval are its own, in the whole process. Half a second.

    >>> chaos("memory", threads=4, operations=50).rounds
    1
    """

    def create(**own: Any) -> Backend:
        if seed % 3 == 2:
            own["max_pending"] = _SMALL
        return create_backend(spec, **{**(options or {}), **own})

    before = set(live_threads())
    unrest = _Unrest(create, seed, threads, operations, patience)
    if "virtual_time" in unrest.audited.capabilities:
        unrest.audited.close()
        raise ValueError("Chaos needs a registry that delivers by itself, and this one has a virtual clock.")
    with switching_often(), unrest.audited.listening():
        try:
            differences = unrest.perform(closes=seed % 5 == 4)
        except _Stuck as exc:
            differences = [str(exc), *unrest.audited.findings, *unrest.errors]
            unrest.let_go()
            unrest.audited.close(0)
        else:
            stayed = [thread.name for thread in set(live_threads()) - before]
            if stayed:
                differences.append(f"threads that outlived the registry: {', '.join(stayed)}.")
    if differences:
        lines = "\n".join(f"  {difference}" for difference in differences)
        raise ChaosFailed(f"after the chaos of seed {seed} this is not as it must be:\n{lines}")
    tally = unrest.audited.tally
    return ChaosFigures(1, tally.operations, tally.begun, tally.failed)


class _Stuck(Exception):  # noqa: N818 - a state that is met, not a mistake
    """Something that must happen does not."""


class _Outcry(BaseException):
    """What a handler may raise that is no `Exception`."""


class _Unrest:
    """What the threads and the handlers of one round do."""

    def __init__(
        self, create: Callable[..., Backend], seed: int, threads: int, operations: int, patience: float
    ) -> None:
        self.errors: list[str] = []
        """What threads raised."""
        self._seed = seed
        self._threads = threads
        self._operations = operations
        self._patience = patience
        self._resets = seed % 2 == 1
        self._start_together = threading.Barrier(threads)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._deliverers = itertools.count()  # guarded by the lock
        self._handles: list[AuditedHandle | None] = [None] * _HANDLES
        self._done = [0] * threads  # how many operations each thread has behind it; -1 when it has ended
        self._over = threading.Event()  # handlers add nothing more, but for clocks that re-arm themselves
        self._shut = threading.Event()  # the registry was closed, so `RegistryClosed` is nothing strange
        self._pause = threading.Event()  # set when a hung round is given up, so that nobody blocks
        self.audited = AuditedRegistry(create, self._handle)
        self._conversations = Conversations(cast(Any, self.audited))
        self._awaits = "coroutine_dispatch" in self.audited.capabilities

    def let_go(self) -> None:
        """Give up: whoever blocks returns."""
        self._over.set()
        self._pause.set()

    def perform(self, *, closes: bool) -> list[str]:
        """The round; what differs at its end. Raises `_Stuck`."""
        workers = self._start("worker", self._work)
        if closes:
            self._pause.wait(random.Random(f"{self._seed} close").random() * 0.3)
            self._shut.set()
            self._close()
            self._finish(workers)
        else:
            self._finish(workers)
            self._over.set()
            self._settle("after the last operation")
            # Clocks are ticking yet, and through the handles that are ended now they re-arm themselves in vain.
            self._finish(self._start("ender", self._end))
            self._settle("after every conversation was ended")
            if not self.audited.differences():
                self._see_a_timer()
        differences = [*self.errors, *self.audited.differences()]
        self._close()
        return differences

    # -- phases ------------------------------------------------------------------------------------------------

    def _start(self, name: str, work: Callable[[int], None]) -> list[threading.Thread]:
        def body(number: int) -> None:
            try:
                self._start_together.wait(self._patience)
                work(number)
            except RegistryClosed as exc:
                if not self._shut.is_set():
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
        if not self.audited.registry.settle(self._patience):
            raise _Stuck(f"the registry does not settle {when}: {self._equation()}")

    def _see_a_timer(self) -> None:
        """Whether the registry still works; the books say what became of it."""
        self.audited.schedule_event(cid=_LAST, instance_id=_LAST, delay_ms=1, event=_LAST)
        if not self.audited.registry.join(self._patience):
            raise _Stuck(f"a timer of 1 ms is not over, and everything else is: {self._equation()}")

    def _close(self) -> None:
        if not self.audited.close(self._patience):
            raise _Stuck("close() says that not everything has stopped")

    def _equation(self) -> str:
        return self.audited.registry.stats().equation

    def _report(self, exc: BaseException) -> None:
        told = "".join(traceback.format_exception(exc)).rstrip()
        self.errors.append(f"{threading.current_thread().name} raised:\n{told}")
        self.audited.found.set()

    # -- threads -----------------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        try:
            for _ in range(self._operations):
                if self.audited.found.is_set():
                    break
                self._operate(chance, chance.choice(_CIDS))
                self._done[number] += 1
                if chance.random() < 0.3:
                    self._pause.wait(chance.random() * 0.003)
        finally:
            self._done[number] = -1

    def _end(self, number: int) -> None:
        # Each conversation once, by one thread: what an end overlooks nobody else removes.
        for cid in _CIDS[number :: self._threads]:
            self._conversations.open(cid).end()

    def _operate(self, chance: random.Random, cid: str) -> None:
        """One operation, of a thread or of a handler."""
        try:
            self._perform(chance.choices(_STEPS, _STEP_WEIGHTS)[0], chance, cid)
        except (RegistryFull, ConversationEnded):
            pass

    def _perform(self, step: str, chance: random.Random, cid: str) -> None:
        audited, instance_id, topic = self.audited, chance.choice(_INSTANCES), chance.choice(_TOPICS)
        match step:
            case "schedule":
                delay_ms = chance.choice(_DELAYS)
                self._keep(
                    chance, audited.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event="due")
                )
            case "schedule by handle":
                self._keep(chance, self._open(cid).schedule("due", chance.choice(_DELAYS), instance_id=instance_id))
            case "start a clock":
                self._keep(chance, self._open(cid).schedule(_CLOCK, chance.choice(_DELAYS), instance_id=instance_id))
            case "cancel":
                handle = chance.choice(self._handles)
                if handle is not None:
                    handle.cancel()
            case "cancel timers":
                audited.cancel_timers(cid, instance_id=chance.choice((None, instance_id)))
            case "subscribe":
                audited.subscribe(cid=cid, instance_id=instance_id, topic=topic, event="said")
            case "subscribe by handle":
                self._open(cid).subscribe(topic, "heard", instance_id=instance_id)
            case "unsubscribe":
                audited.unsubscribe(cid=cid, instance_id=instance_id, topic=chance.choice((None, topic)))
            case "remove":
                audited.remove_subscriptions_for_cid(cid)
            case "publish":
                if self._delivering() or audited.registry.stats().queued < _BACKLOG:
                    audited.publish(topic)
                else:
                    audited.registry.settle(_LONG)
            case "put":
                audited.put_pending_flow(cid)
            case "put by handle":
                self._open(cid).put_flow(True)
            case "take":
                audited.pending_flow(cid)
            case "forget":
                audited.forget_pending_flow(cid)
            case "end":
                self._open(cid).end()
            case "look":
                self._look(cid)
            case "wait":
                self._wait(chance.choice((audited.registry.settle, audited.registry.join)))
            case "install":
                audited.install_dispatch()
            case "reset":
                if self._resets:
                    audited.reset_state()

    def _open(self, cid: str) -> Conversation:
        return self._conversations.open(cid)

    def _keep(self, chance: random.Random, handle: Any) -> None:
        self._handles[chance.randrange(_HANDLES)] = handle

    def _look(self, cid: str) -> None:
        """Every snapshot; inside a delivery it shows that delivery."""
        registry = self.audited.registry
        for sentence in negative_figures(registry.stats()):
            self.audited.find(sentence)
        self.audited.subscriptions()
        registry.inspect()
        running = {name for name, info in registry.inspect(cid).items() if info.running}
        mine = self._delivering()
        if mine == cid and running != {cid}:
            self.audited.find(f"inspect({cid!r}) shows no running delivery, and was asked by one.")

    def _wait(self, wait: Callable[[float | None], bool]) -> None:
        """`settle` or `join`: for a moment, or refused inside a delivery, which would wait for itself."""
        try:
            wait(_LONG)
        except RuntimeError:
            if not self._delivering():
                raise
        else:
            if self._delivering():
                self.audited.find(f"G24: {wait.__name__}() inside a delivery did not raise.")

    # -- handlers ----------------------------------------------------------------------------------------------

    def _delivering(self) -> str:
        """The conversation whose delivery this thread runs, if it runs one."""
        return getattr(self._local, "cid", "")

    def _handle(self, cid: str, event: Event) -> Any:
        if event.name == _LAST:
            return None
        chance: random.Random | None = getattr(self._local, "chance", None)
        if chance is None:
            with self._lock:
                number = next(self._deliverers)
            chance = self._local.chance = random.Random(f"{self._seed} deliverer {number}")
        self._local.cid = cid
        try:
            return self._react(chance, cid, event)
        finally:
            self._local.cid = ""

    def _react(self, chance: random.Random, cid: str, event: Event) -> Any:
        if event.name == _CLOCK:
            conversation = self._conversations.get(cid)
            if conversation is not None:
                self._pause.wait(chance.choice((0, 0, _SHORT)))  # here another thread may end it
                self._keep(
                    chance, conversation.schedule(_CLOCK, chance.choice((0.3, 1, 2)), instance_id=event.instance_id)
                )
        match chance.choices(_REACTIONS, _REACTION_WEIGHTS)[0]:
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
        if not self._awaits:  # on a loop it would end the loop's thread
            kinds.append(KeyboardInterrupt)
        return chance.choice(kinds)("part of the chaos")

    def _wait_for(self, number: int) -> None:
        """Hold the delivery up until an operation of a certain thread is over: none may wait for deliveries (G21)."""
        before = self._done[number]
        for _ in range(int(self._patience / _SHORT / 10)):
            if before < 0 or self._done[number] != before or self.audited.found.is_set() or self._shut.is_set():
                return
            self._pause.wait(_SHORT)  # there is no event for "some operation is over"
        self.audited.find(f"G21: no operation of worker {number} ended while a delivery was held up.")


async def _nothing() -> None:
    """What nobody awaits."""


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "  (it has just ended)"


# How often each step is taken. Few steps of handlers publish, so that what one message brings about comes to an end.
_STEPS, _STEP_WEIGHTS = zip(
    ("schedule", 16), ("schedule by handle", 8), ("start a clock", 2), ("cancel", 8), ("cancel timers", 2),
    ("subscribe", 9), ("subscribe by handle", 5), ("unsubscribe", 3), ("remove", 0.7), ("publish", 10),
    ("put", 4), ("put by handle", 2), ("take", 4), ("forget", 2), ("end", 0.7), ("look", 4), ("wait", 0.5),
    ("install", 1), ("reset", 0.2),
    strict=True,
)  # fmt: skip
_REACTIONS, _REACTION_WEIGHTS = zip(
    ("nothing", 60), ("operate", 20), ("block", 8), ("block for long", 0.1), ("wait for others", 0.3), ("raise", 8),
    ("return a coroutine", 1), ("end", 1),
    strict=True,
)  # fmt: skip
