"""Random operations: one table of weighted steps for every workload that threads and handlers perform."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["HOUR", "RandomSteps", "Step", "ThreadChances", "UniqueIds"]

HOUR: Final = 3_600_000
"""Milliseconds that no test waits for: a timer of an hour stands for one that is not due."""

Step = Callable[[random.Random, str], object]
"""Performs one operation that concerns a conversation."""


class _Numbers(threading.local):
    """The ids of one thread."""

    prefix: int = 0
    numbers: Iterator[int]


class UniqueIds:
    """Makes ids that are used once. Each thread counts for itself, because a lock here would keep threads in step."""

    def __init__(self) -> None:
        self._mine = _Numbers()
        self._lock = threading.Lock()
        self._prefixes = itertools.count(1)  # guarded by the lock

    def __call__(self, kind: str) -> str:
        """Make one that begins with `kind`, a letter."""
        mine = self._mine
        if not mine.prefix:
            mine.numbers = itertools.count(1)
            with self._lock:
                mine.prefix = next(self._prefixes)
        return f"{kind}{mine.prefix}.{next(mine.numbers)}"


class ThreadChances:
    """A random generator for each thread that delivers, seeded by the order in which the threads first deliver."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads = itertools.count()  # guarded by the lock

    def mine(self) -> random.Random:
        """The generator of the calling thread."""
        chance: random.Random | None = getattr(self._local, "chance", None)
        if chance is None:
            with self._lock:
                number = next(self._threads)
            chance = self._local.chance = random.Random(f"{self._seed} deliverer {number}")
        return chance


class RandomSteps:
    """Performs random operations on a registry. The names are few, so that operations collide.

    Args:
        registry: has the twelve operations.
        cids, instances, topics: the names.
        delays: of timers, in milliseconds.
        handles: how many timer handles are kept for cancelling.
        more: further steps, and other versions of those of the table.
    """

    def __init__(
        self,
        registry: Any,
        *,
        cids: Sequence[str],
        instances: Sequence[str],
        topics: Sequence[str],
        delays: Sequence[float],
        handles: int,
        more: Mapping[str, Step] | None = None,
    ) -> None:
        self.instances, self.topics, self.delays = instances, topics, delays
        self._registry = registry
        self._cids = cids
        self._handles: list[Any] = [None] * handles  # no lock: each slot is read and written in one step
        self.new_id = UniqueIds()
        self._table: dict[str, Step] = {
            "schedule": self._schedule,
            "cancel handle": self._cancel_handle,
            "cancel timers": lambda chance, cid: registry.cancel_timers(
                cid, instance_id=chance.choice((None, chance.choice(instances)))
            ),
            "subscribe": lambda chance, cid: registry.subscribe(
                cid=cid, instance_id=chance.choice(instances), topic=chance.choice(topics), event="said"
            ),
            "unsubscribe": lambda chance, cid: registry.unsubscribe(
                cid=cid, instance_id=chance.choice(instances), topic=chance.choice((None, chance.choice(topics)))
            ),
            "remove": lambda chance, cid: registry.remove_subscriptions_for_cid(cid),
            "publish": lambda chance, cid: registry.publish(chance.choice(topics), self.new_id("m")),
            "put": lambda chance, cid: registry.put_pending_flow(cid, self.new_id("f")),
            "take": lambda chance, cid: registry.pending_flow(cid),
            "forget": lambda chance, cid: registry.forget_pending_flow(cid),
            "read subscriptions": lambda chance, cid: registry.subscriptions(),
            "reset": lambda chance, cid: registry.reset_state(),
            **(more or {}),
        }

    def perform(self, chance: random.Random, weights: Mapping[str, float], cid: str | None = None) -> None:
        """Take one step, on this conversation or on a random one.

        Args:
            chance: decides everything.
            weights: how often each step is taken, by its name: one of the table above, or of `more`.
            cid: the conversation; None for a random one.
        """
        name = chance.choices(tuple(weights), tuple(weights.values()))[0]
        self._table[name](chance, chance.choice(self._cids) if cid is None else cid)

    def keep(self, chance: random.Random, handle: Any) -> None:
        """Keep a timer's handle for a later `cancel handle`."""
        self._handles[chance.randrange(len(self._handles))] = handle

    def _schedule(self, chance: random.Random, cid: str) -> None:
        handle = self._registry.schedule_event(
            cid=cid,
            instance_id=chance.choice(self.instances),
            delay_ms=chance.choice(self.delays),
            event=("due", self.new_id("t")),
        )
        self.keep(chance, handle)

    def _cancel_handle(self, chance: random.Random, cid: str) -> None:
        handle = chance.choice(self._handles)
        if handle is not None:
            handle.cancel()
