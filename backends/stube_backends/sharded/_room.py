"""`max_pending` of a sharded registry: one bound, dealt out to the shards.

No operation counts across shards: each shard's engine is bound by the shard's share. A shard that has used its share up
asks `Room.make`, which looks at all shards at one instant and deals out anew what is free. So a refusal means that the
registry was full at that instant (G22). O(shards), and called less often when much room is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from stube import RegistryFull
from stube_backends.engine import Core
from stube_backends.engine._core import REENTRANT, run_all_locked
from stube_backends.engine._engine import registry_full

Wanted = Callable[[], list[int]]
"""Returns for each shard how many more timers and messages it must be able to take."""


class HasCore(Protocol):
    """A shard."""

    @property
    def core(self) -> Core:
        """Its core, another one in a forked child."""
        ...


class Room:
    """The bound of one registry, and the shards that share it.

    Args:
        bound: `max_pending`; None for no bound.
        shards: all of them, in the order of their indices.
    """

    def __init__(self, bound: int | None, shards: Sequence[HasCore]) -> None:
        self.bound = bound
        self.shards = shards

    def cores(self) -> list[Core]:
        """Return the present cores of all shards."""
        return [shard.core for shard in self.shards]

    def one_in(self, shard: HasCore) -> list[int]:
        """Return what is wanted for one more timer in a shard."""
        return [int(each is shard) for each in self.shards]

    def make(self, wanted: Wanted) -> bool:
        """Deal out what is free, so that the shards can take what is wanted; False when that had to be deferred.

        Raises:
            RegistryFull: all shards together have no room for so much.
        """
        if run_all_locked(self.cores(), self._deal_out_locked, wanted) is not REENTRANT:
            return True
        self.require(sum(wanted()))
        return False

    def require(self, more: int, deferred: int = 0) -> None:
        """Refuse so many more timers and messages, if the figures without the locks show that there is no room beside
        those that have been deferred.

        Raises:
            RegistryFull: there is none.
        """
        if self.bound is not None:
            self._left(sum(core.engine.pending_as_it_stands() for core in self.cores()) + deferred, more)

    def make_if_possible_locked(self, wanted: Wanted) -> None:
        """`make`, for a caller that holds all locks; without room nothing changes."""
        if self.bound is not None:
            with suppress(RegistryFull):
                self._deal_out_locked(wanted)

    def _deal_out_locked(self, wanted: Wanted) -> None:
        cores = self.cores()
        pending, more = [core.engine.pending() for core in cores], wanted()
        each, over = divmod(self._left(sum(pending), sum(more)), len(cores))
        for index, core in enumerate(cores):
            core.engine.max_pending = pending[index] + more[index] + each + (index < over)

    def _left(self, pending: int, more: int) -> int:
        """Return how much room is left behind so many `more`; raise when it is less than none."""
        assert self.bound is not None, "a registry without a bound is never full"
        if pending + more > self.bound:
            raise registry_full(pending, more, self.bound) from None  # a shard's own refusal names its share
        return self.bound - pending - more

    def _check(self) -> None:
        if self.bound is not None:
            shares = [core.engine.max_pending for core in self.cores()]
            assert sum(shares) == self.bound, f"shares {shares} of max_pending={self.bound}"


def share_of(bound: int | None, shards: int, index: int) -> int | None:
    """Return the first share of a shard."""
    return None if bound is None else bound // shards + (index < bound % shards)
