"""One test body for both kinds of clock: a recorder that is dispatch, and a driver that lets time pass.

Needs no pytest, so that a scenario may also run in a process of its own (`run_script`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, Final, NamedTuple, cast

from stube import Backend, Event, EventSpec, Stats, TimerHandle, VirtualBackend
from stube.testing._loops import loop_is_needed

__all__ = [
    "PATIENCE",
    "Driver",
    "Gate",
    "Injector",
    "Overdue",
    "Recorder",
    "Seen",
    "check_ledger",
    "failures_unlogged",
    "passes_through",
    "run_script",
    "run_threads",
    "settle_awaiting",
    "switching_often",
    "tracing",
    "tripped",
    "watchdog",
]

PATIENCE: Final = 30.0
"""Seconds to wait for something that must happen. Only a failure waits this long; a machine under load manages."""

# Taken at import, because tests replace attributes of the time module.
_monotonic_ns = time.monotonic_ns
_monotonic = time.monotonic

_HOLD: Final = "stube-hold"
_SENTINEL: Final = "stube-sentinel"
_DRIVER: Final = "stube-driver"


tripped: Final[list[float]] = []
"""What the watchdog has bitten in the test that runs: its registry may stand still for ever, so nobody closes it."""


class Overdue(Exception):  # noqa: N818 - a state that is met, not a mistake
    """Raised in the main thread by `watchdog`: the block took longer than it may, most likely a deadlock."""


class Seen(NamedTuple):
    """One delivery as the recorder saw it."""

    cid: str
    event: Event
    at_ms: float
    """When it began: virtual milliseconds, or those of `time.monotonic_ns`."""
    thread: int


class Gate:
    """A delivery that stands still inside dispatch until the test lets it go on."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.entered = threading.Event()
        self.released = threading.Event()

    def release(self) -> None:
        """Let the held deliveries return. Idempotent."""
        self.released.set()

    def wait_entered(self) -> None:
        """Wait until a delivery stands at the gate."""
        assert self.entered.wait(PATIENCE), "no delivery came to the gate"

    def pass_through(self) -> None:
        """Called by the delivery: say that it is here and wait to be released."""
        self.entered.set()
        self.released.wait(PATIENCE)


class Recorder:
    """A dispatch that records every delivery, in the order in which they begin, and watches G1.

    `on(name, handler)` runs `handler(cid, event)` inside the deliveries of that event name. Deliveries that the driver
    made for itself are not recorded.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        # Guards everything below.
        self._condition = threading.Condition()
        self._running: set[str] = set()
        self._handlers: dict[str, Callable[[str, Event], object]] = {}
        self._gates: dict[str, Gate] = {}
        self._sentinels: dict[str, threading.Event] = {}
        self._made = 0
        self.seen: list[Seen] = []
        self.overlaps: list[str] = []
        """Conversations that had two deliveries at once; empty when G1 holds."""

    def __call__(self, cid: str, event: Event) -> None:
        if event.name == _SENTINEL:
            self._sentinels.pop(event.payload).set()
            return
        if event.name == _HOLD:
            self._gates[event.payload].pass_through()
            return
        at_ms = self._now_ms()
        with self._condition:
            if cid in self._running:
                self.overlaps.append(cid)
            self._running.add(cid)
            self.seen.append(Seen(cid, event, at_ms, threading.get_ident()))
            handler = self._handlers.get(event.name)
            self._condition.notify_all()
        try:
            if handler is not None:
                handler(cid, event)
        finally:
            with self._condition:
                self._running.discard(cid)

    def on(self, name: str, handler: Callable[[str, Event], object]) -> None:
        """Run `handler` inside every delivery whose event has this name."""
        self._handlers[name] = handler

    def gate(self) -> Gate:
        """A new gate for deliveries to stand at."""
        self._made += 1
        gate = Gate(f"gate-{self._made}")
        self._gates[gate.key] = gate
        return gate

    def sentinel(self) -> tuple[str, threading.Event]:
        """A key that the driver may schedule, and the event that is set when it is delivered."""
        self._made += 1
        key, arrived = f"sentinel-{self._made}", threading.Event()
        self._sentinels[key] = arrived
        return key, arrived

    def release_all(self) -> None:
        """Open every gate, so that nothing stays held after a failure."""
        for gate in self._gates.values():
            gate.release()

    def wait_for(self, count: int, timeout: float = PATIENCE) -> bool:
        """Wait until `count` deliveries have begun; whether they did in time."""
        with self._condition:
            return self._condition.wait_for(lambda: len(self.seen) >= count, timeout)

    def clear(self) -> None:
        """Forget what was recorded, payloads included."""
        with self._condition:
            self.seen.clear()

    @property
    def names(self) -> list[str]:
        """The event names, in the order in which the deliveries began."""
        return [seen.event.name for seen in list(self.seen)]

    @property
    def payloads(self) -> list[Any]:
        """The payloads, in the order in which the deliveries began."""
        return [seen.event.payload for seen in list(self.seen)]

    @property
    def cids(self) -> list[str]:
        """The conversations, in the order in which the deliveries began."""
        return [seen.cid for seen in list(self.seen)]

    def of(self, cid: str) -> list[Seen]:
        """The deliveries of one conversation."""
        return [seen for seen in list(self.seen) if seen.cid == cid]


class Driver:
    """A registry under test with its recorder, and the few verbs in which virtual and real time differ."""

    def __init__(self, registry: Backend) -> None:
        self.registry = registry
        self.clock: VirtualBackend | None = (
            cast(VirtualBackend, registry) if "virtual_time" in registry.capabilities else None
        )
        self.recorder = Recorder(self.now_ms)
        # Deliveries that the driver made for itself; subtracted from the ledger that a test compares.
        self._own = 0
        registry.install_dispatch(self.recorder)

    def now_ms(self) -> float:
        """The instant, on the clock that moves the registry's timers."""
        return _monotonic_ns() / 1e6 if self.clock is None else self.clock.now_ms

    def schedule(
        self, delay_ms: float = 0, event: EventSpec = "tick", *, cid: str = "c1", instance_id: str = "main"
    ) -> TimerHandle:
        """`schedule_event` with defaults."""
        return self.registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)

    def subscribe(
        self, topic: str = "t", event: EventSpec = "said", *, cid: str = "c1", instance_id: str = "main"
    ) -> None:
        """`subscribe` with defaults."""
        self.registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    def settle(self) -> None:
        """Wait until everything that is ready has been delivered."""
        assert self.registry.settle(PATIENCE), f"does not settle: {self.registry.stats().equation}"

    def pass_time(self, ms: float) -> None:
        """Let `ms` pass, and everything that is due by then be delivered.

        On a real clock nobody sleeps: a timer of that delay on the same registry says when the time is over.
        """
        if self.clock is not None:
            self.clock.advance(ms)
            return
        key, arrived = self.recorder.sentinel()
        self._own += 1
        self.registry.schedule_event(cid=_DRIVER, instance_id=_DRIVER, delay_ms=ms, event=(_SENTINEL, key))
        assert arrived.wait(ms / 1000 + PATIENCE), f"a timer of {ms} ms did not fire"
        self.settle()

    @contextmanager
    def delivering(self, advance_ms: float | None = None) -> Iterator[None]:
        """Deliver in the background for the length of the block; at its end every gate opens.

        A backend with real time does that anyway. On a virtual clock a helper thread settles, or advances by
        `advance_ms`; the block may call every operation, but not move the clock.
        """
        if self.clock is None:
            try:
                yield
            finally:
                self.recorder.release_all()
            return
        clock, errors = self.clock, list[BaseException]()

        def deliver() -> None:
            try:
                if advance_ms is None:
                    clock.settle(PATIENCE)
                else:
                    clock.advance(advance_ms)
            except BaseException as exc:  # noqa: BLE001 - handed to the test
                errors.append(exc)

        helper = threading.Thread(target=deliver, daemon=True)
        helper.start()
        try:
            yield
        finally:
            self.recorder.release_all()
            helper.join(PATIENCE)
        assert not helper.is_alive(), "the helper thread does not end"
        if errors:
            raise errors[0]

    @contextmanager
    def held(self, *cids: str, advance_ms: float | None = None) -> Iterator[Gate]:
        """Hold the deliveries of these conversations up for the length of the block; what is accepted meanwhile waits.

        A backend with one delivering thread stands still altogether. See `delivering` for virtual clocks.
        """
        gate = self.recorder.gate()
        for cid in cids or (_DRIVER,):
            self._own += 1
            self.registry.schedule_event(cid=cid, instance_id=_DRIVER, delay_ms=0, event=(_HOLD, gate.key))
        with self.delivering(advance_ms):
            gate.wait_entered()
            yield gate

    def stats(self) -> Stats:
        """The ledger when everything ready has been delivered, without the driver's own deliveries."""
        self.settle()
        stats = self.registry.stats()
        return replace(stats, accepted=stats.accepted - self._own, delivered=stats.delivered - self._own)

    def sizes(self) -> Mapping[str, int]:
        """The length of every internal container once it has settled; capability `sizes`."""
        self.settle()
        return dict(cast(Any, self.registry).sizes())

    def subscribers(self, topic: str) -> list[tuple[str, str]]:
        """Who subscribes, in the order of joining; sorted where the backend has no order across conversations."""
        found = list(self.registry.subscriptions().get(topic, {}))
        return found if "common_topic_order" in self.registry.capabilities else sorted(found)

    def counts(self) -> Counter[str]:
        """How many deliveries each conversation had."""
        return Counter(self.recorder.cids)


def check_ledger(registry: Backend) -> Stats:
    """Assert that no figure is negative and that the equation holds as soon as nothing runs; return the ledger."""
    deadline = _monotonic() + PATIENCE
    pause = threading.Event()
    latest, changed_at = None, 0.0
    while True:
        stats = registry.stats()
        negative = [name for name in Stats.__dataclass_fields__ if getattr(stats, name) < 0]
        assert not negative, f"{negative[0]} is negative: {stats}"
        if stats != latest:
            latest, changed_at = stats, _monotonic()
        # Figures that are out and stand still for a second while nothing runs will not come right.
        at_rest = stats.running == 0 and (stats.balanced or _monotonic() > changed_at + 1)
        if at_rest or _monotonic() > deadline:
            break
        pause.wait(0.001)  # there is no event for "the batch is counted"; bounded by PATIENCE
    assert stats.running == 0, f"a delivery still runs: {stats}"
    assert stats.balanced, f"the ledger does not balance: {stats.equation}"
    return stats


def passes_through(call: Callable[[], object], timeout: float = 5.0) -> bool:
    """Whether another thread gets through this call while the caller stands still: False where the caller's lock is in
    its way. Where it is not, milliseconds do, so the bound of 5 s is a failure's only."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()


@contextmanager
def switching_often() -> Iterator[None]:
    """Let the interpreter switch between threads as often as it can, so that narrow races come about."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def failures_unlogged() -> Iterator[None]:
    """Keep the failures of handlers, where they are part of a random program, out of the log."""
    logger = logging.getLogger("stube")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def run_threads(*functions: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Run the functions at once, each in a thread of its own, from one common start, with the interpreter switching
    often; re-raise the first error."""
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


@contextmanager
def watchdog(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise `Overdue` inside the block when it takes longer: a lock that waits for itself is interrupted.

    Works in the main thread of systems that have `setitimer`; elsewhere the runner's own timeout must serve.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def bark(number: int, frame: FrameType | None) -> None:
        tripped.append(seconds)
        raise Overdue(f"the block took longer than {seconds} s: a deadlock, or something like it")

    previous = signal.signal(signal.SIGALRM, bark)
    begin = _monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left:  # a runner's own time limit goes on, on the same timer
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (_monotonic() - begin)), interval)


_OWN_FOLDER: Final = os.path.dirname(__file__)


class Injector:
    """A trace function that performs an action once, when a certain line beneath an operation is reached."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self._left = at
        self._actions = [action]  # popped, for several threads may come to the line
        self.fired = ""
        """The place of the line, once it was reached."""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        # The lines of the suite itself are no part of the operation.
        if frame.f_code.co_filename.startswith(_OWN_FOLDER):
            return None
        if event == "line" and not self.fired:
            self._left -= 1
            if self._left < 0:
                try:
                    action = self._actions.pop()
                except IndexError:
                    return self  # another thread is at it
                self.fired = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                action()
        return self


def settle_awaiting(registry: Backend) -> None:
    """`settle`, where what dispatch returns may have to be awaited, which a virtual clock does only if it is too."""
    if {"virtual_time", "coroutine_dispatch"} <= registry.capabilities:
        settled = asyncio.run(cast(VirtualBackend, registry).settled(PATIENCE))
    else:
        settled = registry.settle(PATIENCE)
    assert settled, f"does not settle: {registry.stats().equation}"


@contextmanager
def tracing(injector: Injector) -> Iterator[None]:
    """Let the injector see every line of the block that this thread executes."""
    previous = sys.gettrace()
    sys.settrace(injector)
    try:
        yield
    finally:
        sys.settrace(previous)


_PRELUDE: Final = """
import json, os, signal, sys, threading, time, warnings
# A fork with threads about is what these scripts are for.
warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
import stube
from stube.testing._drive import PATIENCE, Driver, run_threads
from stube.testing._loops import create, create_apart, live_threads, start

if os.environ.pop("STUBE_LOOP_IS_NEEDED", ""):
    start()

def make(**options):
    spec, always = json.loads(os.environ["STUBE_UNDER_TEST"])
    return create(spec, **{**always, **options})

def make_apart(**options):
    "One that no other can hold up, whatever it shares by way of the suite."
    spec, always = json.loads(os.environ["STUBE_UNDER_TEST"])
    return create_apart(spec, **{**always, **options})

def read_all(fd, seconds):
    "Everything that comes through the pipe until its end, or until nothing came for so long."
    import select
    data = b""
    while select.select([fd], [], [], seconds)[0]:
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        data += chunk
    return data.decode()

def finish():
    "The last line of a script that does not close: when the program should end."
    print(time.time(), flush=True)

"""


def run_script(spec: object, options: Mapping[str, Any], body: str, *, timeout: float = 60) -> str:
    """Run a scenario in a fresh interpreter and return what it printed.

    It finds `make(**options)`, which makes the backend under test, and the names of the prelude above. Asserts that it
    ends in time, with code 0 and with nothing on stderr.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    environment.pop("PYTHONWARNINGS", None)
    # Not in the arguments, which every user of the machine can read: a URL may hold a password.
    environment["STUBE_UNDER_TEST"] = json.dumps([spec, dict(options)])
    environment["STUBE_LOOP_IS_NEEDED"] = "yes" if loop_is_needed(spec, options) else ""
    command = [sys.executable, "-X", "faulthandler", "-c", _PRELUDE + body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stderr == "", f"the script wrote on stderr:\n{done.stderr}"
    assert done.returncode == 0, f"the script ended with code {done.returncode}; it printed:\n{done.stdout}"
    return done.stdout
