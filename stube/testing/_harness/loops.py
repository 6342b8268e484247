"""Registries for tests. A registry of asyncio is served by an event loop in a thread of its own.

The suite is written in plain functions, which call a registry from outside its loop, as the threads of a host may. The
kind of loop and the kind of dispatch are set in two environment variables, for this process and those that it starts.
So one run of the suite tests one kind of loop with one kind of dispatch.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from typing_extensions import override

from stube import Backend, Event, create_registry, is_async, is_coroutine_function

__all__ = [
    "DISPATCH",
    "DISPATCHES",
    "LOOP",
    "LOOPS",
    "create",
    "create_apart",
    "live_threads",
    "loop_is_needed",
    "start",
]

LOOP: Final = "STUBE_TEST_LOOP"
DISPATCH: Final = "STUBE_TEST_DISPATCH"
LOOPS: Final = ("asyncio", "uvloop")
"""The values of `STUBE_TEST_LOOP`; the first is the default."""
DISPATCHES: Final = ("function", "coroutine")
"""The values of `STUBE_TEST_DISPATCH`: a test's plain dispatch is installed as it is, or inside a coroutine function.
The first is the default."""

_PATIENCE: Final = 10.0  # seconds until a loop that must answer counts as stuck
_served: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


class _LoopThread(threading.Thread):
    """An event loop that runs until the process ends."""

    def __init__(self, kind: str) -> None:
        super().__init__(name=f"stube-testing-{kind}", daemon=True)
        self.process = os.getpid()
        self.loop = _new_loop(kind)
        self.start()

    @override
    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                pass  # raised by a handler; no code waits for it here

    def call(self, function: Callable[[], object], patience: float) -> bool:
        """Call a function on the loop. Return whether it has returned in time."""
        if self.loop is asyncio._get_running_loop():
            function()
            return True
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self.loop.call_soon_threadsafe(run)
        return done.wait(patience)


_in_use: Final[dict[str, _LoopThread]] = {}  # one for each kind


def create(spec: Any, **options: Any) -> Backend:
    """Make a registry as `create_registry` does. All that need an event loop are served by the same one."""
    registry: Backend = create_registry(spec, **options)
    if is_async(registry):
        _serve(registry)
        if os.environ.get(DISPATCH, DISPATCHES[0]) == "coroutine":
            _install_in_coroutines(registry)
    return registry


def create_apart(spec: Any, **options: Any) -> Backend:
    """Make a registry as `create` does, with an event loop of its own, which other registries cannot block."""
    _in_use.clear()
    registry = create(spec, **options)
    _in_use.clear()
    return registry


def loop_is_needed(spec: Any, options: Mapping[str, Any]) -> bool:
    """Tell whether registries of this spec need an event loop."""
    with create_registry(spec, **options) as registry:
        return is_async(registry)


def live_threads() -> list[threading.Thread]:
    """Return the process's threads, except those that run the loops here and belong to no registry."""
    return [thread for thread in threading.enumerate() if not isinstance(thread, _LoopThread)]


def start() -> None:
    """Start the loop before it is needed, so that a test does not count its thread and files as the registry's."""
    _current()


def _serve(registry: Backend) -> None:
    """Bind a registry to the loop, by calling an operation on the loop."""
    if not _served and hasattr(os, "register_at_fork"):
        os.register_at_fork(
            after_in_child=_serve_all_anew
        )  # not at import, because it must run after the registry's own
    _served.add(registry)
    if not _current().call(registry.stats, _PATIENCE):
        _in_use.clear()  # a test blocks the loop; the registries from now on get another one
        _current().call(registry.stats, _PATIENCE)


def _serve_all_anew() -> None:
    """Bind every registry to a new loop, in a forked child, which has no thread of the old one."""
    for registry in list(_served):
        _current().call(registry.stats, _PATIENCE)


def _current() -> _LoopThread:
    kind = os.environ.get(LOOP) or LOOPS[0]
    if kind not in _in_use or _in_use[kind].process != os.getpid():
        _in_use[kind] = _LoopThread(kind)
    return _in_use[kind]


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        import uvloop

        return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
    if kind == "asyncio":
        return asyncio.new_event_loop()
    raise ValueError(f"{LOOP} is {kind!r}. Choose from {', '.join(LOOPS)}.")


def _install_in_coroutines(registry: Any) -> None:
    """Let the registry install a plain function inside a coroutine function."""
    install = type(registry).install_dispatch
    reference = weakref.ref(registry)
    inside: set[str] = set()

    def install_dispatch(dispatch: Any, /) -> None:
        async def awaited(cid: str, event: Event) -> None:
            assert cid not in inside, f"two deliveries at the same time in {cid!r} (G1)"
            inside.add(cid)
            try:
                result = dispatch(cid, event)
                if isinstance(result, Awaitable):
                    await result
                await asyncio.sleep(0)  # give others a turn of the loop while this delivery still runs
            finally:
                inside.discard(cid)

        plain = callable(dispatch) and not is_coroutine_function(dispatch)
        install(reference(), awaited if plain else dispatch)

    registry.install_dispatch = install_dispatch
