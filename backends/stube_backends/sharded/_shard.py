"""One shard: the registry of some of the conversations, with its own core and its own delivery thread."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from typing_extensions import override

from stube import Dispatch, RegistryFull
from stube_backends.engine import EARLIEST, Core, Engine, LocalRegistry, Options, ThreadDriver, daemon_thread
from stube_backends.engine._backlogs import ConversationFull
from stube_backends.engine._core import ShardGroup, run_all_locked
from stube_backends.engine._timers import Timer
from stube_backends.sharded._room import Room


class Shard(LocalRegistry):
    """A local registry that shares its room, its deferred calls and its topics' generation with its siblings.

    Args:
        index: among the shards.
        group: shared by all of them.
        share: of the room, at first; None for no bound.
        options: of the registry; `max_pending` is the registry's.
        slow_dispatch_ms: see `ThreadDriver`.
    """

    _driver: ThreadDriver

    def __init__(
        self, index: int, group: ShardGroup, share: int | None, options: Options, slow_dispatch_ms: float | None
    ) -> None:
        self._index = index
        self._group = group
        self._share = share
        self._slow_dispatch_ms = slow_dispatch_ms
        self._room: weakref.ref[Room] | None = None
        super().__init__(options)

    def share_room(self, room: Room) -> None:
        """Share the room of all shards. The shard refers to it weakly, because the room refers to the shard; the
        registry keeps both alive."""
        self._room = weakref.ref(room)

    @property
    def core(self) -> Core:
        """The core, the same for everything that one operation does with the shard."""
        return self._driver.core

    @override
    def _new_driver(self, dispatch: Dispatch) -> ThreadDriver:
        core = Core(Engine(self._share, self._group.generation, self._options.limits), dispatch, self._group)
        return ThreadDriver(core, self._options, daemon_thread(f"stube-sharded-{self._index}"), self._slow_dispatch_ms)

    @override
    def start_anew(self) -> None:
        self._group = self._group.of_this_process()
        super().start_anew()

    # -- room --------------------------------------------------------------------------------------------------

    @override
    def _make_room(self, exc: RegistryFull) -> bool:
        room = None if self._room is None else self._room()
        if room is None or isinstance(exc, ConversationFull):
            return False
        room.make(partial(room.one_in, self))  # the shard's share is used up
        return True

    @override
    def _require_room_for_deferred(self, core: Core) -> None:
        core.engine.require_open()
        room = None if self._room is None else self._room()
        if room is not None:
            deferred = (getattr(operation, "__func__", None) for operation, _ in core.deferred.pending())
            room.require(1, sum(function is Shard._admit_deferred for function in deferred))

    @override
    def _admit_deferred(self, core: Core, timer: Timer, delay: int) -> None:
        room = None if self._room is None else self._room()
        if room is None:
            super()._admit_deferred(core, timer, delay)
            return
        now = self._options.clock()
        run_all_locked(room.cores(), self._admit_sharing_locked, room, core, timer, delay, now)
        self._driver.wake()

    def _admit_sharing_locked(self, room: Room, core: Core, timer: Timer, delay: int, now: int) -> object:
        room.make_if_possible_locked(partial(room.one_in, self))  # else the engine drops the timer
        return self._admit_locked(core, timer, delay, now)

    # -- what the registry does with several shards, each with the core that it has locked ------------------------

    def prepare(self, dispatch: Dispatch) -> Dispatch:
        """See `Driver.prepare`."""
        return self._driver.prepare(dispatch)

    def install_locked(self, core: Core, dispatch: Dispatch) -> Dispatch:
        """Install a prepared dispatch; return the one before, for the caller to release."""
        before, core.dispatch = core.dispatch, dispatch
        return before

    def drop_in_progress_locked(self, core: Core) -> list[Any]:
        """Drop what would still begin without the lock; return what was held."""
        held: list[Any] = core.engine.claims.drop_in_progress()
        return held

    def reset_locked(self, core: Core) -> list[Any]:
        """Forget everything; return what was held."""
        return self._reset_locked(core, core.engine.reset)

    def forget_locked(self, core: Core) -> list[Any]:
        """Forget everything but the batons; return what was held."""
        return self._reset_locked(core, core.engine.forget_the_rest)

    def close_locked(self, core: Core) -> list[Any]:
        """Close the engine; return what was held."""
        core.started = False
        return self._reset_locked(core, core.engine.close)

    def publish_locked(self, core: Core, topic: str, msg: Any, now: int) -> int:
        """Accept a publication that all shards have room for; return how many targets it has here."""
        targeted = core.engine.publish(topic, msg, now, checked=True)
        if targeted and not core.keepalive:
            core.keepalive.append(self)
        return targeted

    def ensure_started(self, core: Core) -> None:
        """Start the delivery thread, unless it runs; raise when it cannot."""
        if not core.started:
            self._driver.start()

    def wake_and_report(self) -> None:
        """Wake the delivery thread, unless it will look anyway; and report what back-pressure removed."""
        core = self.core
        if core.engine.backlogs is not None:
            self._report_overflows(core)
        if core.sleep_until > EARLIEST:
            self._driver.wake()

    def stop(self, timeout: float | None) -> bool:
        """After `close_locked`: return whether the delivery thread has ended."""
        return self._driver.stop(timeout)

    def delivers_here(self) -> bool:
        """See `Driver.delivers_here`."""
        return self._driver.delivers_here()
