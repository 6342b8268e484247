"""Registries for tests, those of asyncio included: these are served by an event loop in a thread of its own.

The suite is written in plain functions, and calls a registry from outside of its loop, as threads of a host may. Which
loop it is and how dispatch is installed are settings of the process and of those that it starts, in two variables of
the environment, so that one run of the suite holds one kind of loop and of dispatch to the contract.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from stube import Backend, Event, create_registry
from stube.testing._harness.proxy import is_coroutine_function

__all__ = ["DISPATCHES", "LOOPS", "create", "create_apart", "live_threads", "loop_is_needed", "start"]

LOOP: Final = "STUBE_TEST_LOOP"
DISPATCH: Final = "STUBE_TEST_DISPATCH"
LOOPS: Final = ("asyncio", "uvloop")
"""What `STUBE_TEST_LOOP` may be; the first when it is not set."""
DISPATCHES: Final = ("function", "coroutine")
"""What `STUBE_TEST_DISPATCH` may be: whether a test's plain dispatch is installed as it is, or in a coroutine function;
the first when it is not set."""

_PATIENCE: Final = 30.0  # seconds until a loop that must answer counts as stuck
_served: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


class _LoopThread(threading.Thread):
    """An event loop that runs until the process ends."""

    def __init__(self, kind: str) -> None:
        super().__init__(name=f"stube-testing-{kind}", daemon=True)
        self.process = os.getpid()
        self.loop = _new_loop(kind)
        self.start()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                pass  # a handler's; here nobody waits for it

    def call(self, function: Callable[[], object], patience: float) -> bool:
        """Call a function on the loop; whether it has come back."""
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
    """`create_registry`, and a running loop for a registry that needs one, the same for all."""
    registry: Backend = create_registry(spec, **options)
    if _is_async(registry):
        _serve(registry)
        if os.environ.get(DISPATCH, DISPATCHES[0]) == "coroutine":
            _install_in_coroutines(registry)
    return registry


def create_apart(spec: Any, **options: Any) -> Backend:
    """`create`, with a loop for this one alone, which others cannot hold up."""
    _in_use.clear()
    registry = create(spec, **options)
    _in_use.clear()
    return registry


def loop_is_needed(spec: Any, options: Mapping[str, Any]) -> bool:
    """Whether registries of this spec are served by a loop."""
    with create_registry(spec, **options) as registry:
        return _is_async(registry)


def live_threads() -> list[threading.Thread]:
    """The process's threads, but for those that run the loops here: they are not a registry's."""
    return [thread for thread in threading.enumerate() if not isinstance(thread, _LoopThread)]


def start() -> None:
    """Have the loop running before it is needed: its thread and its files are not the registry's."""
    _current()


def _is_async(registry: Backend) -> bool:
    return "coroutine_dispatch" in registry.capabilities and "virtual_time" not in registry.capabilities


def _serve(registry: Backend) -> None:
    """Bind a registry to the loop, by an operation that is called there."""
    if not _served and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_serve_all_anew)  # now, for it must come after the registry's own
    _served.add(registry)
    if not _current().call(registry.stats, _PATIENCE):
        _in_use.clear()  # a test holds it up for ever; the next one has a loop that runs
        _current().call(registry.stats, _PATIENCE)


def _serve_all_anew() -> None:
    """In a forked child, where the loop's thread is not."""
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
    """Let the registry install what is a plain function in a coroutine function."""
    install = type(registry).install_dispatch
    reference = weakref.ref(registry)
    inside: set[str] = set()

    def install_dispatch(dispatch: Any, /) -> None:
        async def awaited(cid: str, event: Event) -> None:
            assert cid not in inside, f"two deliveries at once in {cid!r} (G1)"
            inside.add(cid)
            try:
                result = dispatch(cid, event)
                if isinstance(result, Awaitable):
                    await result
                await asyncio.sleep(0)  # a turn of the loop in which others may begin, and it goes on running
            finally:
                inside.discard(cid)

        plain = callable(dispatch) and not is_coroutine_function(dispatch)
        install(reference(), awaited if plain else dispatch)

    registry.install_dispatch = install_dispatch
