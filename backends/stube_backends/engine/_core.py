"""The core of a local registry: its engine behind one lock, and what that lock guards.

**How an operation survives being interrupted on its own thread (G20).** A finalizer or a signal handler can run
between any two lines, also while this thread holds the lock, and may call an operation of the same registry. The
lock is therefore one that knows its owner, and together with `busy` it tells such a call that it is nested: then the
call leaves the half-changed engine alone, notes itself in `deferred` and returns. Whoever leaves the lock runs what
was noted, before the interrupted operation returns. So every change of the engine runs whole, and the engine needs no
thought of interruption. Look-ups that cannot wait (a snapshot) read the engine as it stands, which is legal at
every line: rings are linked and cut so that walking them forward always works.

**How cores that belong together keep from waiting for each other.** A registry on several cores is interrupted in the
same way, and the nested call may be for another core than the interrupted one. If it waited there while a thread that
is inside that core waited here, neither would ever go on. So a thread that is inside one of several cores never waits
for another (`Siblings`): what cannot be had at once is noted, and what follows a noted operation is noted behind it.
Only `together` holds several, taken in the order of their indices by a thread that was inside none.

**How a fork makes old work dead (G25).** All that belongs to one life of a registry hangs on its core. A forked
child gets a new one. Code that was under way in the parent goes on with the old core, whose engine nobody delivers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from operator import call
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

from stube import Dispatch, Event, StubeError
from stube_backends.engine._engine import Engine
from stube_backends.engine._recovery import rebuild
from stube_backends.engine._topics import Epoch


class ReentrantLock(Protocol):
    """What a core needs of a lock: `threading.RLock` has it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class _Nested:
    """The type of `NESTED`."""

    __slots__ = ()


NESTED: Final = _Nested()
"""What `Core.exclusively` returns when it was called from within itself, on the same thread."""

FOREVER: Final = 1 << 100
"""An instant that is as good as never, whatever a clock reads. An int, for comparing with a float costs 0.1 us."""

_logger = logging.getLogger("stube")


def log(level: int, message: str, *arguments: object, exc_info: BaseException | None = None) -> BaseException | None:
    """Log on `stube`, never under a lock. What a log handler raises stops nothing (G19); it is returned."""
    try:
        _logger.log(level, message, *arguments, exc_info=exc_info)
    except BaseException as exc:  # noqa: BLE001
        return exc
    return None


def ignore(cid: str, event: Event) -> None:
    """The dispatch until one is installed."""


class Releasable(Protocol):
    """What ends a wait: a `threading.Lock` that somebody wants to take, or its like."""

    def release(self) -> None: ...


class Waiter(NamedTuple):
    """A `settle` or a `join` that waits."""

    timers_too: bool
    since: int
    """When it was called: what was ready then must be over."""
    lock: Releasable
    """Taken until the wait is over."""


class Siblings:
    """What the cores of one registry share: which of them a thread is inside, and what it has noted meanwhile."""

    __slots__ = ("catching_up", "deferred", "epoch", "owned", "process", "start_lock", "successor")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.epoch = Epoch()  # of their topics
        self.successor: Siblings | None = None  # in a forked child
        # Operations to make up for, by the thread that noted them and will run them; nobody else touches its entry.
        self.deferred: dict[int, deque[tuple[Callable[..., object], tuple[Any, ...]]]] = {}
        self.catching_up: set[int] = set()  # the threads that are at it; each adds and discards itself
        self.owned: list[Callable[[], bool]] = []  # of each lock: whether this thread holds it
        # Held while whoever delivers for one of the cores is started. One for all, for a start may be interrupted too,
        # by a call that needs another core's; never waited for by who is half-way through an operation.
        self.start_lock: ReentrantLock | None = None  # made by the first core that is served

    def nested(self) -> bool:
        """Whether this thread is half-way through an operation of one of the cores, which the caller interrupts."""
        return any(map(call, self.owned))

    def of_this_process(self) -> Siblings:
        """Itself; or, in a forked child, one that is new and the same for all that ask."""
        if self.process == os.getpid():
            return self
        if self.successor is None or self.successor.process != os.getpid():
            self.successor = Siblings()
        return self.successor

    def patient(self, lock: ReentrantLock) -> Callable[[], bool]:
        """How a core with siblings acquires its lock: it waits unless it must not, and says whether it has the lock."""
        acquire, deferred, get_ident, nested = lock.acquire, self.deferred, threading.get_ident, self.nested

        def acquire_or_note() -> bool:
            if deferred and get_ident() in deferred and nested():
                return False
            return acquire(False) or (not nested() and acquire())

        return acquire_or_note


class Core:
    """One engine, one lock, and the fields that the lock guards.

    Args:
        lock: knows its owner; handed in.
        engine: of which nobody else knows.
        dispatch: where deliveries go.
        siblings: what this core shares with others of the same registry; None for a core without siblings.
    """

    __slots__ = (
        "acquire",
        "anchor",
        "busy",
        "catching_up",
        "deferred",
        "dispatch",
        "engine",
        "lock",
        "owned",
        "release",
        "serving",
        "siblings",
        "sleep_until",
        "waiters",
    )

    def __init__(
        self, lock: ReentrantLock, engine: Engine[Any], dispatch: Dispatch, siblings: Siblings | None = None
    ) -> None:
        self.siblings = siblings or Siblings()
        self._take_lock(lock, alone=siblings is None)
        self.engine = engine  # guarded by the lock, but for its batons' `pop` and a walk's targets
        self.busy = False  # whether the lock's holder is inside an operation; written by the holder only
        self.deferred = self.siblings.deferred
        self.catching_up = self.siblings.catching_up
        self.dispatch: Callable[[str, Event], Any] = dispatch  # no lock: one reference, read once for every delivery
        self.serving = False  # whether somebody will deliver; True for good once it is True, until close
        # Until when whoever delivers does not look by itself; written under the lock by the deliverer, and
        # lowered by whoever then wakes it, see LocalRegistry._wake.
        self.sleep_until = FOREVER
        self.anchor: list[object] = []  # holds the registry while anything is pending; guarded by the lock
        self.waiters: list[Waiter] = []  # guarded by the lock

    def nested(self) -> bool:
        """Whether this thread is half-way through an operation of this core or a sibling, which the call interrupts."""
        return self.siblings.nested()

    def exclusively(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Run `operation(*arguments)` while nobody else does; NESTED when this thread is half-way through another,
        of this core, or of a sibling and another thread is in this one.

        What it raises passes through. Numbered races that the order of the lines avoids:
        1. Another thread sets `busy` after the first line: `acquire` waits for it. A nested call cannot come out of
           the first line as a foreign one: `busy` is set and unset by the lock's holder only.
        2. A nested call before `busy = True` runs whole, before this one has begun.
        3. A nested call between `busy = False` and the last line may have noted itself: so look after the release.
        4. A signal handler that raises anywhere here: `recover` leaves the lock as it was.
        """
        if self.busy and self.owned():
            return NESTED
        try:
            if not self.acquire():
                return NESTED
            self.busy = True
            result = operation(*arguments)
            self.busy = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.catch_up()
        return result

    def recover(self, exc: BaseException) -> None:
        """After an exception: make the engine whole and release the lock, if this thread still holds it.

        An operation refuses with an error of stube's before it changes anything. Anything else came out of nowhere,
        by a signal handler and at any line, and has broken it off half-way.
        """
        if self.owned():
            if self.busy and not isinstance(exc, StubeError):
                rebuild(self.engine)
            self.busy = False
            self.release()
        if self.deferred:
            self.catch_up()

    def later(self, operation: Callable[..., object], *arguments: Any) -> None:
        """Note an operation for when the interrupted one has been left."""
        self.deferred.setdefault(threading.get_ident(), deque()).append((operation, arguments))

    def drop_later(self, held: object) -> None:
        """Let go of something when the interrupted operation has been left, for its destructor is user code."""
        self.later(_drop, held)

    def noted(self) -> list[tuple[Callable[..., object], tuple[Any, ...]]]:
        """What has been noted and not made up for. Another thread may be at its own: then look again."""
        while True:
            try:
                return [each for mine in self.deferred.values() for each in mine]
            except RuntimeError:
                pass

    def catch_up(self) -> None:
        """Run what this thread noted, in its order. Nobody is left to be told of an error, so it is logged.

        Each of these operations calls this again when it leaves the lock; that call leaves the rest to this one, so
        that ten thousand finalizers in one collection are a loop and no recursion.
        """
        thread = threading.get_ident()
        if thread in self.catching_up or self.nested():  # nested in a sibling, which will be left as well
            return
        self.catching_up.add(thread)
        try:
            mine = self.deferred.get(thread)
            while mine:
                operation, arguments = mine.popleft()
                try:
                    operation(*arguments)
                except StubeError as exc:
                    log(logging.WARNING, "an operation made within another one came to nothing: %s", exc)
        finally:
            self.catching_up.discard(thread)
        # A signal handler may come in between any two of these lines, and what it notes was left to this call as long
        # as the thread stood in `catching_up`. From then on it catches up itself, so that nothing is left behind.
        if mine:
            self.catch_up()
        if not self.deferred.get(thread):
            self.deferred.pop(thread, None)

    def retire(self, lock: ReentrantLock) -> None:
        """In a forked child: let nothing more of the parent's batch begin, and wait for no thread of the parent."""
        self.engine.claims.stop()
        for noted in self.deferred.values():
            noted.clear()  # it was called in the parent, and happens there
        if not self.owned():
            # Another thread of the parent may hold the lock, for ever: that thread does not exist here.
            self.siblings.owned.remove(self.owned)
            self._take_lock(lock, alone=True)

    def _take_lock(self, lock: ReentrantLock, *, alone: bool) -> None:
        self.lock = lock
        # Bound once: `with lock` costs twice as much. It waits, and is True, unless there are siblings.
        self.acquire: Callable[[], bool] = lock.acquire if alone else self.siblings.patient(lock)
        self.release = lock.release
        self.owned: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # as threading.Condition asks
        self.siblings.owned.append(self.owned)


def _drop(_held: object) -> None:
    """Let go of what was handed in."""


def together(cores: Sequence[Core], operation: Callable[..., Any], *arguments: Any) -> Any:
    """Run `operation(*arguments)` while nobody else runs one on any of these siblings; NESTED when this thread is
    half-way through an operation of a sibling.

    Waits for one lock while it holds others: always in the order of `cores`, which must be that of their indices.
    """
    if len(cores) == 1:
        return cores[0].exclusively(operation, *arguments)
    if cores[0].nested():
        return NESTED
    try:
        for core in cores:
            core.lock.acquire()
            core.busy = True
        result = operation(*arguments)
        for core in cores:
            core.busy = False
            core.release()
    except BaseException as exc:
        for core in cores:
            core.recover(exc)
        raise
    if cores[0].deferred:
        cores[0].catch_up()
    return result
