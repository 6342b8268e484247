"""The driver of a local registry: the part that decides when deliveries run, and on which thread or loop.

A local registry consists of a core and a driver. The core accepts, cancels and counts; the driver starts, wakes, stops
and waits, and calls dispatch for what the core says is ready. There is one for a thread of the registry's own
(`ThreadDriver`), one for an event loop (in the backend `asyncio`) and one for a virtual clock (in the backend
`virtual`). A backend that needs another one derives it from `Driver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, Protocol

from typing_extensions import override

from stube import Dispatch
from stube_backends.engine._core import Core

LONGEST_SLEEP: Final = 3600  # seconds; a far timer is looked at once an hour, whatever its delay

_REQUIRED: Final = ("enter", "prepare", "start", "wake", "stop", "wait", "delivers_here", "call_back")


class Driver(Protocol):
    """Runs the deliveries of one core. A forked child gets a new core with a new driver.

    No method is called under the core's lock. Each may be called by several threads at the same time, and by a
    finalizer or a signal handler that interrupts any line of it on the same thread (G20). So a driver takes only locks
    that are re-entrant or that it never waits for.

    A class that derives from it and lacks a method is refused when the class is created.
    """

    __slots__ = ()

    core: Core

    def enter(self) -> Core:
        """Return the core. Every operation calls this first, so a driver may prepare here: a loop driver binds to the
        running loop."""
        ...

    def prepare(self, dispatch: Callable[..., Any]) -> Dispatch:
        """Refuse a dispatch that this driver cannot call (G19); return the function that it calls for a delivery."""
        ...

    def start(self) -> None:
        """Make sure that what is accepted will be delivered, and set `core.started`.

        Called by the first operation that needs a delivery.

        Raises:
            RegistryClosed: the engine is closed.
            Exception: deliveries cannot run, because no thread can be had, say. The operation raises it too (G23).
        """
        ...

    def wake(self) -> None:
        """Make the delivery thread look again, because something is due before `core.sleep_until` or there is a waiter
        (G10). Never waits. It may lower `core.sleep_until`, so that other callers need not wake the thread again."""
        ...

    def stop(self, timeout: float | None) -> bool:
        """After the engine was closed: end the deliveries, and return whether everything has stopped (G24).

        Args:
            timeout: seconds to wait for a running delivery; None for no bound. From inside a delivery, and from a
                re-entrant call, do not wait.
        """
        ...

    def wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        """Wait until nothing is ready and nothing runs (`settle`); with `timers_too`, until nothing is pending
        (`join`).

        Args:
            timeout: seconds; None for no bound.
            timers_too: which of the two.

        Returns:
            Whether that is so; False after `timeout` seconds.

        Raises:
            RuntimeError: the caller is inside a delivery and would wait for itself.
        """
        ...

    def delivers_here(self) -> bool:
        """Return whether the current thread is the delivery thread, so that the caller is inside a delivery."""
        ...

    def call_back(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function of the host where `on_error` runs: a loop driver on its loop, others immediately."""
        ...

    @override
    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        refuse_missing_members(cls, Driver, _REQUIRED)


def refuse_missing_members(cls: type, base: type, members: Iterable[str]) -> None:
    """Refuse a class that inherits a member which its base only declares. Called when the class is created.

    Raises:
        TypeError: it lacks a member.
    """
    missing = [name for name in members if getattr(cls, name) is getattr(base, name)]
    if missing:
        raise TypeError(f"{cls.__name__} lacks {', '.join(missing)}. Define what {base.__name__} declares.")


def sleep_seconds(nanoseconds: int) -> float:
    """Return how long to sleep until something that is due in so many nanoseconds, an hour at most."""
    return min(nanoseconds, LONGEST_SLEEP * 10**9) / 1e9


def refuse_inside(operation: str) -> NoReturn:
    """Refuse to wait inside a delivery.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(f"{operation}() was called from inside a delivery and would wait for itself. Return first.")
