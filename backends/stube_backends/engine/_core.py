"""The core of a local registry: its engine behind one lock, and what that lock guards.

**How an operation survives being interrupted on its own thread (G20).** A finalizer or a signal handler can run
between any two lines, also while this thread holds the lock, and may call an operation of the same registry. The
lock is therefore re-entrant, so that such a call does not deadlock, and `busy` tells it that it is nested: then it
leaves the half-changed engine alone, notes itself in `deferred` and returns. Whoever leaves the lock runs what was
noted, before the interrupted operation returns. So every change of the engine runs whole, and the engine needs no
thought of interruption. Look-ups that cannot wait (a snapshot) read the engine as it stands, which is legal at
every line: rings are linked and cut so that walking them forward always works.

**How a fork makes old work dead (G25).** All that belongs to one life of a registry hangs on its core. A forked
child gets a new one. Code that was under way in the parent goes on with the old core, whose engine nobody delivers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from stube import Dispatch, Event, StubeError
from stube_backends.engine._engine import Engine


class ReentrantLock(Protocol):
    """What a core needs of a lock: `threading.RLock` has it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


class _Nested:
    """The type of `NESTED`."""

    __slots__ = ()


NESTED: Final = _Nested()
"""What `Core.exclusively` returns when it was called from within itself, on the same thread."""

FOREVER: Final = 1 << 100
"""An instant that is as good as never, whatever a clock reads. An int, for comparing with a float costs 0.1 us."""

_logger = logging.getLogger("stube")


def ignore(cid: str, event: Event) -> None:
    """The dispatch until one is installed."""


class Core:
    """One engine, one lock, and the fields that the lock guards."""

    __slots__ = (
        "acquire",
        "anchor",
        "busy",
        "deferred",
        "deliverer",
        "dispatch",
        "engine",
        "lock",
        "release",
        "serving",
        "sleep_until",
        "waiters",
    )

    def __init__(self, lock: ReentrantLock, engine: Engine, dispatch: Dispatch) -> None:
        self.lock = lock
        self.acquire = lock.acquire  # bound once: `with lock` costs twice as much
        self.release = lock.release
        self.engine = engine  # guarded by the lock, but for its batons' `pop` and a walk's targets
        self.busy = False  # whether the lock's holder is inside an operation; written by the holder only
        # Operations to make up for, by the thread that noted them and will run them; nobody else touches its entry.
        self.deferred: dict[int, deque[tuple[Callable[..., object], tuple[Any, ...]]]] = {}
        self.dispatch: Callable[[str, Event], Any] = dispatch  # no lock: one reference, read once for every delivery
        self.serving = False  # whether somebody will deliver; True for good once it is True, until close
        self.deliverer: int | None = None  # the thread that is inside `deliver`; written by that thread only
        # Until when whoever delivers does not look by itself; written under the lock by the deliverer, and
        # lowered by whoever then wakes it, see LocalRegistry._wake.
        self.sleep_until = FOREVER
        self.anchor: list[object] = []  # holds the registry while anything is pending; guarded by the lock
        self.waiters: list[tuple[bool, threading.Lock]] = []  # settle and join; guarded by the lock

    def exclusively(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Run `operation(*arguments)` while nobody else does; NESTED when this thread is half-way through another.

        What it raises passes through. Numbered races that the order of the lines avoids:
        1. A nested call between `acquire` and `busy = True` runs whole, before this one has begun.
        2. A nested call between `busy = False` and the last line may have noted itself: so look after the release.
        3. A signal handler that raises anywhere here: `recover` leaves the lock as it was.
        """
        entered = False
        try:
            self.acquire()
            if self.busy:
                self.release()
                return NESTED
            self.busy = entered = True
            result = operation(*arguments)
            self.busy = False
        except BaseException:
            self.recover(entered)
            raise
        self.release()
        if self.deferred:
            self.catch_up()
        return result

    def recover(self, entered: bool) -> None:
        """Release the lock after an exception, which may have come from a signal handler and at any line."""
        if entered or (not self.busy and self.lock._is_owned()):  # type: ignore[attr-defined]
            self.busy = False
            self.release()
            if self.deferred:
                self.catch_up()

    def later(self, operation: Callable[..., object], *arguments: Any) -> None:
        """Note an operation for when the interrupted one has been left."""
        self.deferred.setdefault(threading.get_ident(), deque()).append((operation, arguments))

    def catch_up(self) -> None:
        """Run what this thread noted. Nobody is left to be told of an error, so it is logged."""
        mine = self.deferred.get(threading.get_ident())
        while mine:
            operation, arguments = mine.popleft()
            try:
                operation(*arguments)
            except StubeError as exc:
                _logger.warning("an operation made within another one came to nothing: %s", exc)
        self.deferred.pop(threading.get_ident(), None)

    def retire(self, lock: ReentrantLock) -> None:
        """In a forked child: let nothing more of the parent's batch begin, and wait for no thread of the parent."""
        if self.engine.walk is not None:
            self.engine.walk.stop()
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            # Another thread of the parent may hold it, for ever: that thread does not exist here.
            self.lock, self.acquire, self.release = lock, lock.acquire, lock.release
