"""Threads that start together, and the interpreter switching between them often."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stube.testing._harness.clock import PATIENCE

__all__ = ["passes_through", "run_threads", "switching_often"]


def passes_through(call: Callable[[], object], timeout: float = PATIENCE / 2) -> bool:
    """Tell whether another thread completes this call while the calling thread waits.

    It cannot if the calling thread holds a lock that the call needs. Otherwise it takes milliseconds, so only a failure
    waits for the whole timeout.
    """
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()


@contextmanager
def switching_often() -> Iterator[None]:
    """Let the interpreter switch between threads as often as it can, so that narrow races happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def run_threads(*functions: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Run the functions at the same time, each in a thread of its own, from a common start; raise the first error.

    The interpreter switches between threads as often as it can.
    """
    barrier = threading.Barrier(len(functions))
    errors: list[BaseException] = []

    def body(function: Callable[[], object]) -> None:
        try:
            barrier.wait(PATIENCE)
            function()
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            errors.append(exc)

    threads = [threading.Thread(target=body, args=(function,), daemon=True) for function in functions]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
