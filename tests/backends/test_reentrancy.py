"""G20, proven at every line: operations called from trace functions, finalizers and signal handlers.

`Injector` runs an action, once, at one chosen line event of the backends' own code. An injected call must leave the
registry as if it had been made either just before or just after the interrupted one. So the tests compare the outcome
of a run with the outcomes of the two calls in sequence.
"""

from __future__ import annotations

import gc
import logging
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from typing_extensions import override

import stube_backends
from stube import Event, RegistryFull, TimerHandle
from stube.testing._harness import HOUR, PATIENCE, Effort, Injector, check_ledger, watchdog
from stube_backends.memory import MemoryRegistry
from stube_backends.virtual import VirtualRegistry

BACKEND_FILES: Final = str(Path(stube_backends.__file__).parent)
AnyRegistry = MemoryRegistry | VirtualRegistry
KINDS: Final[dict[str, type[AnyRegistry]]] = {"virtual": VirtualRegistry, "memory": MemoryRegistry}
both = pytest.mark.parametrize("kind", list(KINDS))


def injector_at(at: int, action: Callable[[], object], *, raising: bool = False) -> Injector:
    """Count only lines of the backends. Keep an exception of the action in the injector, unless `raising`."""
    return Injector(at, action, within=BACKEND_FILES, keep_error=not raising)


class Helper:
    """Another thread, which must be able to complete an operation at any time."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.stuck = False
        threading.Thread(target=self._work, daemon=True, name="helper").start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
                self._results.put(None)
            except BaseException as exc:  # noqa: BLE001 - handed to the test
                self._results.put(exc)

    def can(self, task: Callable[[], object], patience: float = 2.0) -> bool:
        """Return whether the other thread completes `task`, which takes microseconds unless a lock is held."""
        if self.stuck:
            return False
        self._tasks.put(task)
        try:
            error = self._results.get(timeout=patience)
        except queue.Empty:
            self.stuck = True
            return False
        if error is not None:
            raise error
        return True

    def end(self) -> None:
        """End the thread."""
        self._tasks.put(None)


@pytest.fixture
def helper() -> Iterator[Helper]:
    made = Helper()
    yield made
    made.end()


class Scene:
    """A registry that holds entries of every kind, and delivers only when the test asks for the outcome."""

    def __init__(self, registry: AnyRegistry) -> None:
        self.registry = registry
        self.seen: list[tuple[object, ...]] = []
        self.answers: dict[str, object] = {}
        self._entered, self._gate = threading.Event(), threading.Event()
        registry.install_dispatch(self.first)
        self._real = isinstance(registry, MemoryRegistry)
        if self._real:  # keep the delivery thread busy until `release`
            registry.schedule_event(cid="hold", instance_id="hold", delay_ms=0, event="hold")
            assert self._entered.wait(PATIENCE)
        registry.put_pending_flow("c1", "old flow")
        self.handle = self.schedule("c1", HOUR, "far")
        self.schedule("c1", HOUR, "side", instance_id="side")
        self.schedule("c2", 2 * HOUR, "other")
        self.schedule("c1", 0, "soon")
        for cid, instance_id, topic in (("c1", "main", "t"), ("c2", "main", "t"), ("c1", "side", "u")):
            registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=("said", "spec"))
        registry.publish("t", "old message")
        self.before = registry.stats()

    def schedule(self, cid: str, delay_ms: float, event: str, *, instance_id: str = "main") -> Any:
        return self.registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=(event, "spec"))

    def first(self, cid: str, event: Event) -> None:
        if event.name == "hold":
            self._entered.set()
            self._gate.wait(PATIENCE)
        else:
            self.seen.append(("first", cid, event.instance_id, event.name, event.payload))

    def second(self, cid: str, event: Event) -> None:
        self.seen.append(("second", cid, event.instance_id, event.name, event.payload))

    def release(self) -> None:
        """Let the delivery thread continue."""
        self._gate.set()

    def outcome(self) -> dict[str, object]:
        """Return everything observable: the entries that the registry holds, and then its deliveries."""
        registry = self.registry
        registry._check()
        held = self._picture()
        self.release()
        assert registry.settle(PATIENCE), f"does not settle: {registry.stats().equation}"
        registry._check()
        after = self._picture()
        assert registry.stats().balanced, registry.stats().equation
        assert registry.sizes()["deferred"] == 0, "a deferred call did not run"
        return {"answers": self.answers, "held": held, "delivered": self.seen, "after": after}

    def _picture(self) -> dict[str, object]:
        stats = asdict(self.registry.stats())
        then = asdict(self.before)
        since = ("accepted", "delivered", "failed", "cancelled", "dropped")
        return {
            "stats": {name: value - then[name] if name in since else value for name, value in stats.items()},
            "subscriptions": self.registry.subscriptions(),
            "conversations": {
                cid: replace(info, timers=tuple(replace(timer, remaining_ms=0.0) for timer in info.timers))
                for cid, info in self.registry.inspect().items()
            },
        }


def _stats(scene: Scene) -> None:
    """Assert that no figure of the ledger is negative, as at any line."""
    stats = scene.registry.stats()
    negative = {name: value for name, value in asdict(stats).items() if value < 0}
    assert not negative, f"negative figures: {negative}"


def _subscriptions(scene: Scene) -> None:
    """Assert that the snapshot has no empty topic, as at any line."""
    found = scene.registry.subscriptions()
    assert all(found.values()), f"an empty topic: {found}"


OPERATIONS: Final[dict[str, Callable[[Scene, str], object]]] = {
    "install_dispatch": lambda scene, role: scene.registry.install_dispatch(scene.second),
    "put_pending_flow": lambda scene, role: scene.registry.put_pending_flow("c1", f"flow of the {role}"),
    "pending_flow": lambda scene, role: scene.answers.update({role: scene.registry.pending_flow("c1")}),
    "forget_pending_flow": lambda scene, role: scene.answers.update({role: scene.registry.forget_pending_flow("c1")}),
    "schedule_event": lambda scene, role: scene.schedule("c1", 0, f"timer of the {role}"),
    "cancel_timers": lambda scene, role: scene.registry.cancel_timers("c1"),
    "subscribe": lambda scene, role: scene.registry.subscribe(
        cid="c3", instance_id="main", topic="t", event=f"said to the {role}"
    ),
    "unsubscribe": lambda scene, role: scene.registry.unsubscribe(cid="c1", instance_id="main"),
    "remove_subscriptions_for_cid": lambda scene, role: scene.registry.remove_subscriptions_for_cid("c1"),
    "publish": lambda scene, role: scene.registry.publish("t", f"message of the {role}"),
    "subscriptions": lambda scene, role: _subscriptions(scene),
    "reset_state": lambda scene, role: scene.registry.reset_state(),
    "stats": lambda scene, role: _stats(scene),
    "inspect": lambda scene, role: scene.registry.inspect(),
    "sizes": lambda scene, role: scene.registry.sizes(),
    "schedule far": lambda scene, role: scene.schedule("c1", HOUR + 5, f"far timer of the {role}"),
    "subscribe again": lambda scene, role: scene.registry.subscribe(
        cid="c1", instance_id="main", topic="t", event=f"said anew to the {role}"
    ),
    "cancel one instance": lambda scene, role: scene.registry.cancel_timers("c1", instance_id="side"),
    "unsubscribe one": lambda scene, role: scene.registry.unsubscribe(cid="c1", instance_id="main", topic="t"),
    "handle.cancel": lambda scene, role: scene.handle.cancel(),
    "end_conversation": lambda scene, role: scene.registry.end_conversation("c1"),
}
"""The twelve operations, the snapshots, and variants that take other paths. `role` distinguishes outer and inner."""

EXPECTED: Final[dict[tuple[str, str, str], list[dict[str, object]]]] = {}


def sequences(registry: AnyRegistry, outer: str, inner: str) -> list[dict[str, object]]:
    """Return the outcomes of the two operations in sequence, in both orders."""
    key = (type(registry).__name__, outer, inner)
    if key not in EXPECTED:
        outcomes = []
        for steps in (((outer, "outer"), (inner, "inner")), ((inner, "inner"), (outer, "outer"))):
            registry.reset_state()
            scene = Scene(registry)
            for name, role in steps:
                OPERATIONS[name](scene, role)
            outcomes.append(scene.outcome())
        EXPECTED[key] = outcomes
    return EXPECTED[key]


def differences(outcome: dict[str, Any], expected: list[dict[str, Any]]) -> str:
    """Describe the parts of an outcome that fit neither sequence."""
    return (
        "; ".join(
            f"{key}: {outcome[key]} is neither {expected[0][key]} nor {expected[1][key]}"
            for key in outcome
            if outcome[key] != expected[0][key] and outcome[key] != expected[1][key]
        )
        or "a mixture of both orders"
    )


class Sweep:
    """Injects one operation into another, line by line, and reuses a registry until a run damages it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.registry = KINDS[kind]()
        self.faults: list[str] = []
        self.runs = 0

    def inject(self, outer: str, inner: str, step: int) -> None:
        """Inject `inner` into `outer` at every `step`-th line, beginning at a line that depends on `inner`."""
        expected = sequences(self.registry, outer, inner)
        at = sum(map(ord, inner)) % step
        while self._one(outer, inner, at, expected):
            at += step

    def _one(self, outer: str, inner: str, at: int, expected: list[dict[str, object]]) -> bool:
        self.registry.reset_state()
        scene = Scene(self.registry)
        injector = injector_at(at, lambda: OPERATIONS[inner](scene, "inner"))
        self.runs += 1
        fault: object = None
        try:
            injector.run(lambda: OPERATIONS[outer](scene, "outer"))
            fault = injector.error
            if injector.fired and fault is None:
                outcome = scene.outcome()
                if outcome not in expected:
                    fault = differences(outcome, expected)
        except BaseException as exc:  # noqa: BLE001 - collected
            fault = exc
        scene.release()
        if fault is not None:
            self.faults.append(f"{inner} in {outer} at {injector.fired}: {fault!r}")
            self.registry.close(0)
            self.registry = KINDS[self.kind]()
        return bool(injector.fired)

    def finish(self) -> None:
        """Assert that operations were injected and that no run found a fault."""
        assert self.registry.close(PATIENCE)
        assert self.runs > 10, "nothing was injected"
        assert not self.faults, f"{len(self.faults)} of {self.runs} injections:\n" + "\n".join(self.faults[:12])


@pytest.mark.parametrize("outer", list(OPERATIONS))
@both
def test_an_operation_may_be_called_at_any_line_of_another(kind: str, outer: str, stube_effort: Effort) -> None:
    """Fault: a re-entrant call reads and changes an engine in the middle of a change (lost timers, broken rings, wrong
    figures), waits for a lock that its own thread holds, is lost, or runs twice."""
    sweep = Sweep(kind)
    with watchdog(60):
        for inner in OPERATIONS:
            # On virtual every line is tried. On memory, where a run takes three times as long, and where the suite is
            # quick, every third or fourth line is tried for each inner operation; their offsets differ, so that some
            # operation is injected at every line.
            sweep.inject(outer, inner, max(stube_effort.stride, 1 if kind == "virtual" else 3))
    sweep.finish()


# -- the first operation, which starts the thread ------------------------------------------------------------


def serving_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "stube-memory"}


@pytest.mark.parametrize("outer", ["schedule_event", "publish"])
@pytest.mark.parametrize("inner", ["schedule_event", "publish"])
def test_a_start_interrupted_at_any_line_starts_one_thread(outer: str, inner: str) -> None:
    """Fault: a finalizer schedules while the first operation is about to start the thread. Both start one, and two
    threads deliver from one engine, which breaks G1."""
    faults = []
    at = 0
    while True:
        seen: list[str] = []
        registry = MemoryRegistry()
        registry.install_dispatch(lambda cid, event: seen.append(event.name))  # noqa: B023 - in this round
        registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")

        def call(name: str) -> None:
            if name == "publish":
                registry.publish("t", 1)  # noqa: B023
            else:
                registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")  # noqa: B023

        before = serving_threads()
        injector = injector_at(at, lambda: call(inner))
        with watchdog():
            injector.run(lambda: call(outer))
            started = len(serving_threads() - before)
            joined = registry.join(PATIENCE)
        registry._check()
        names = sorted("said" if name == "publish" else "tick" for name in (outer, inner))
        if injector.fired and (injector.error or started != 1 or sorted(seen) != names):
            faults.append(f"{injector.fired}: {started} threads, delivered {seen}, raised {injector.error!r}")
        assert joined
        if not registry.close(0.2 if faults else PATIENCE):
            faults.append(f"{injector.fired}: not everything stopped")
        if not injector.fired:
            break
        at += 1
    assert at > 20
    assert not faults, f"at {len(faults)} of {at} lines:\n" + "\n".join(faults[:20])


@pytest.mark.parametrize("outer", ["put_pending_flow", "schedule_event", "publish", "cancel_timers", "reset_state"])
@pytest.mark.parametrize("what", ["close", "settle", "join"])
def test_waiting_at_any_line_of_an_operation_is_bounded(what: str, outer: str) -> None:
    """Fault: a SIGTERM handler that closes (or settles, or joins) at a line where its own thread holds the lock waits
    for a scheduler thread that waits for this lock: for five seconds, or without end.

    The call may raise RuntimeError, or return soon.
    """
    faults = []
    at = 0
    while True:
        registry = MemoryRegistry()
        registry.schedule_event(cid="warm", instance_id="main", delay_ms=0, event="up")
        assert registry.join(PATIENCE)
        registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
        took = 0.0

        def wait(registry: MemoryRegistry = registry) -> None:
            nonlocal took
            started = time.monotonic()
            try:
                getattr(registry, what)(1.0)
            except RuntimeError:
                pass  # settle and join may refuse in this way
            took = time.monotonic() - started

        injector = injector_at(at, wait)
        operation = {
            "put_pending_flow": lambda: registry.put_pending_flow("c1", 1),  # noqa: B023
            "schedule_event": lambda: registry.schedule_event(  # noqa: B023
                cid="c1", instance_id="main", delay_ms=0, event="tick"
            ),
            "publish": lambda: registry.publish("t", 1),  # noqa: B023
            "cancel_timers": lambda: registry.cancel_timers("c1"),  # noqa: B023
            "reset_state": lambda: registry.reset_state(),  # noqa: B023
        }[outer]
        raised: BaseException | None = None
        with watchdog():
            try:
                injector.run(operation)
            except RuntimeError as exc:
                raised = exc  # RegistryClosed, when the injected close came first
        if raised is not None and what != "close":
            faults.append(f"{injector.fired}: {outer} raised {raised!r}")
        # The call returns after about 0.1 ms. The bound of 0.5 s allows for a busy machine; a thread that waits for
        # itself would wait until the timeout of 1 s.
        if injector.error is not None or took > 0.5:
            faults.append(f"{injector.fired}: {what} took {took:.2f} s, raised {injector.error!r}")
        if what == "close" and injector.fired:
            with watchdog():
                assert registry.close(PATIENCE)
            assert registry.inspect() == {}, f"{injector.fired}: something was accepted by a closed registry"
        registry.close(PATIENCE)
        if not injector.fired:
            break
        at += 1
    assert at > 5
    assert not faults, f"at {len(faults)} of {at} lines:\n" + "\n".join(faults[:20])


def test_the_virtual_clock_is_not_moved_from_within_an_operation() -> None:
    """Fault: `advance` in a signal handler delivers in the middle of an operation: dispatch runs under the lock, where
    a handler that waits for another thread waits without end."""
    helper = Helper()
    faults = []
    at = 0
    while True:
        registry = VirtualRegistry()
        able: list[bool] = []

        def dispatch(cid: str, event: Event, registry: VirtualRegistry = registry, able: list[bool] = able) -> None:
            able.append(helper.can(registry.stats, 0.5))  # noqa: B023 - called in this round

        registry.install_dispatch(dispatch)
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        injector = injector_at(at, lambda: registry.advance(0))  # noqa: B023
        injector.run(lambda: registry.put_pending_flow("c1", 1))  # noqa: B023
        if able == [False]:
            faults.append(injector.fired)
            helper = Helper()  # the old one is free by now, but counts as stuck
        registry.advance(0)
        registry._check()
        check_ledger(registry)
        if not injector.fired:
            break
        at += 1
    helper.end()
    assert at > 5
    assert not faults, f"dispatch ran under the lock at {faults}"


# -- deliveries ----------------------------------------------------------------------------------------------


def _deliverable(registry: AnyRegistry, seen: list[str]) -> list[Any]:
    """Add timers and publications, most of them due immediately, and return the handles of the timers."""
    registry.install_dispatch(lambda cid, event: seen.append(f"{cid} {event.name} {event.payload}"))
    handles = []
    for number in range(2):
        registry.subscribe(cid=f"c{number}", instance_id="main", topic="t", event="said")
    for number in range(2):
        handles.append(
            registry.schedule_event(cid=f"c{number}", instance_id="main", delay_ms=0, event=("tick", number))
        )
        registry.publish("t", number)
    handles.append(registry.schedule_event(cid="c0", instance_id="main", delay_ms=1, event=("tick", 2)))
    return handles


INNER: Final[dict[str, Callable[[AnyRegistry, list[Any]], object]]] = {
    "install_dispatch": lambda registry, handles: registry.install_dispatch(lambda cid, event: None),
    "put_pending_flow": lambda registry, handles: registry.put_pending_flow("c0", 1),
    "pending_flow": lambda registry, handles: registry.pending_flow("c0"),
    "forget_pending_flow": lambda registry, handles: registry.forget_pending_flow("c0"),
    "schedule_event": lambda registry, handles: registry.schedule_event(
        cid="c9", instance_id="main", delay_ms=0, event=("added", "timer")
    ),
    "cancel_timers": lambda registry, handles: registry.cancel_timers("c0"),
    "subscribe": lambda registry, handles: registry.subscribe(cid="c9", instance_id="main", topic="t", event="said"),
    "unsubscribe": lambda registry, handles: registry.unsubscribe(cid="c1", instance_id="main"),
    "remove_subscriptions_for_cid": lambda registry, handles: registry.remove_subscriptions_for_cid("c1"),
    "publish": lambda registry, handles: registry.publish("t", "added"),
    "subscriptions": lambda registry, handles: registry.subscriptions(),
    "reset_state": lambda registry, handles: registry.reset_state(),
    "stats": lambda registry, handles: registry.stats(),
    "inspect": lambda registry, handles: registry.inspect(),
    "sizes": lambda registry, handles: registry.sizes(),
    "handle.cancel": lambda registry, handles: [handle.cancel() for handle in handles],
}


def _after_delivering(registry: AnyRegistry, inner: str, seen: list[str], answer: object) -> list[str]:
    """Describe all that is wrong after an injection into a delivery."""
    wrong = []
    stats = registry.stats()
    if stats.running or stats.timers or stats.queued or not stats.balanced:
        wrong.append(f"the ledger says {stats}")
    if inner == "schedule_event" and "c9 added timer" not in seen:
        wrong.append("the injected timer did not fire")
    if inner == "publish" and not {"c0 said added", "c1 said added"} <= set(seen):
        wrong.append("the injected message did not arrive")
    if inner == "put_pending_flow" and registry.pending_flow("c0") != 1:
        wrong.append("the injected baton is gone")
    if inner == "subscribe" and ("c9", "main") not in registry.subscriptions()["t"]:
        wrong.append("the injected subscription is gone")
    if inner in ("unsubscribe", "remove_subscriptions_for_cid") and ("c1", "main") in registry.subscriptions()["t"]:
        wrong.append("the injected call did not unsubscribe")
    if isinstance(answer, list):
        timers = ["c0 tick 0", "c1 tick 1", "c0 tick 2"]
        wrong += [
            f"cancelled, and delivered {t!r}" for t, gone in zip(timers, answer, strict=True) if gone and t in seen
        ]
    unchanging = (
        "install_dispatch",
        "reset_state",
        "cancel_timers",
        "unsubscribe",
        "remove_subscriptions_for_cid",
    )
    if inner not in (*unchanging, "handle.cancel") and len([line for line in seen if "added" not in line]) < 7:
        wrong.append(f"only {seen} were delivered")
    if len(set(seen)) != len(seen):
        wrong.append(f"something was delivered twice: {seen}")
    return wrong


@pytest.mark.parametrize("inner", list(INNER))
def test_an_operation_may_be_called_at_any_line_of_a_delivery(inner: str) -> None:
    """Fault: a finalizer in the middle of a delivery cancels a timer that is claimed but still looks pending, and the
    delivery fails; or a figure is counted twice."""
    faults = []
    at = 0
    while True:
        registry = VirtualRegistry()
        seen: list[str] = []
        handles = _deliverable(registry, seen)
        answer: list[object] = []
        injector = injector_at(at, lambda: answer.append(INNER[inner](registry, handles)))  # noqa: B023
        wrong = []
        try:
            with watchdog():
                injector.run(lambda: registry.advance(1))  # noqa: B023
                registry.advance(0)
                registry._check()
        except BaseException as exc:  # noqa: BLE001 - collected
            wrong.append(repr(exc))
        if not injector.fired:
            break
        if injector.error is not None:
            wrong.append(repr(injector.error))
        wrong = wrong or _after_delivering(registry, inner, seen, answer[0])
        faults += [f"{injector.fired}: {what}" for what in wrong]
        at += 1
    assert at > 100
    assert not faults, f"{len(faults)} faults at {at} lines:\n" + "\n".join(faults[:12])


@pytest.mark.parametrize("inner", list(INNER))
def test_an_operation_may_be_called_at_any_line_of_the_scheduler_thread(inner: str) -> None:
    """Fault: a finalizer that the collector runs on the scheduler thread ends that thread, or its call is lost."""
    faults = []
    # About 400 lines run here; the exact number depends on the timing of the threads. The test above tries every line
    # of the delivery itself; this one samples the lines around it. Because the step is a prime number, the samples
    # fall on other lines in each round.
    for at in range(sum(map(ord, inner)) % 13, 330, 13):
        registry = MemoryRegistry()
        seen: list[str] = []
        handles: list[Any] = []
        answer: list[object] = []
        injector = injector_at(at, lambda: answer.append(INNER[inner](registry, handles)))  # noqa: B023
        threading.settrace(injector)  # for the threads that start from here on
        try:
            handles += _deliverable(registry, seen)
        finally:
            threading.settrace(None)  # which is how one turns it off
        with watchdog():
            settled = registry.join(5)
        if injector.fired:
            wrong = [] if settled else [f"the registry does not settle: {registry.stats()}"]
            if injector.error is not None:
                wrong.append(repr(injector.error))
            faults += [f"{injector.fired}: {what}" for what in wrong]
        registry.close(1)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:12])


def test_a_handle_never_cancels_a_timer_that_has_been_claimed() -> None:
    """Fault: between the claim and the call of dispatch another thread's `cancel()` still finds the event on the timer
    and returns True, and the scheduler thread ends with an AttributeError."""
    registry = MemoryRegistry()
    seen: list[str] = []
    registry.install_dispatch(lambda cid, event: seen.append(event.name))
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="warm")
    assert registry.join(PATIENCE)
    core = registry._driver.core
    release = core.release
    claimed, cancelled = threading.Event(), threading.Event()

    def release_and_wait() -> None:
        """Hold the scheduler thread just after it has claimed a timer and left the lock."""
        release()
        if threading.current_thread().name == "stube-memory" and core.engine.ledger.running:
            claimed.set()
            cancelled.wait(PATIENCE)

    core.release = release_and_wait
    handle = registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert claimed.wait(PATIENCE)
    answer = handle.cancel()
    cancelled.set()
    assert registry.settle(5), f"cancel() answered {answer}, and the scheduler thread is gone: {registry.stats()}"
    assert (answer, seen) == (False, ["warm", "tick"])
    check_ledger(registry)
    assert registry.close(PATIENCE)


# -- many re-entrant calls -----------------------------------------------------------------------------------


@both
def test_thousands_of_reentrant_calls_in_one_operation_take_effect(kind: str) -> None:
    """Fault: deferred calls run recursively, and a collection that finalizes a thousand objects in the middle of an
    operation ends in a RecursionError, with the lock held."""
    registry = KINDS[kind]()
    number = 2 * sys.getrecursionlimit()

    def reentrant() -> None:
        for index in range(number):
            registry.put_pending_flow(f"c{index}", index)

    injector = injector_at(15, reentrant)
    helper = Helper()
    try:
        injector.run(lambda: registry.subscribe(cid="c1", instance_id="main", topic="t", event="said"))
    finally:
        free = helper.can(lambda: registry.subscriptions(), 0.5)
        helper.end()
    assert injector.error is None
    assert free, "the lock is still held"
    assert registry.stats().pending_flows == number
    assert registry.sizes()["deferred"] == 0
    registry._check()
    assert registry.close(PATIENCE)


@both
def test_reentrant_calls_take_effect_in_order(kind: str) -> None:
    """Fault: deferred calls run in another order, so that a timer outlives the cancel that followed it, or an
    unsubscribe undoes the subscribe that came after it."""
    registry = KINDS[kind]()
    at = 0
    while True:

        def reentrant() -> None:
            for _ in range(3):
                registry.schedule_event(cid="c1", instance_id="main", delay_ms=HOUR, event="tick")
                registry.cancel_timers("c1")
                registry.unsubscribe(cid="c1", instance_id="main")
                registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
            registry.put_pending_flow("c1", "last")

        registry.reset_state()
        injector = injector_at(at, reentrant)
        injector.run(lambda: registry.subscribe(cid="c2", instance_id="main", topic="t", event="said"))
        if not injector.fired:
            break
        assert injector.error is None
        registry._check()
        stats = registry.stats()
        assert (stats.timers, stats.subscriptions, stats.pending_flows) == (0, 2, 1), injector.fired
        at += 1
    assert at > 10
    check_ledger(registry)
    assert registry.close(PATIENCE)


def test_a_reentrant_timer_can_be_cancelled_by_its_handle() -> None:
    """Fault: the handle of a deferred timer does nothing, or the registry accepts the timer although it was
    cancelled."""
    registry = VirtualRegistry()
    core = registry._driver.core
    answers: list[bool] = []

    def half_way() -> None:
        handle = registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        answers.append(handle.cancel())
        answers.append(handle.cancel())
        kept.append(registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick"))

    kept: list[Any] = []
    core.run_locked(half_way)
    registry._check()
    assert answers == [False, False], "inside an operation a cancel returns False or 0, because it is deferred"
    stats = registry.stats()
    assert (stats.accepted, stats.cancelled, stats.timers) == (2, 1, 1)
    assert kept[0].cancel()
    assert not kept[0].cancel()
    check_ledger(registry)


def test_a_reentrant_timer_on_a_full_registry_is_refused_at_the_call() -> None:
    """Fault: the timer is deferred, and dropped later without an error; or deferred calls that need no room count as
    timers."""
    registry = VirtualRegistry(max_pending=2)
    core = registry._driver.core
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")

    def half_way() -> None:
        for _ in range(5):
            registry.cancel_timers("c9")  # takes no room
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
        with pytest.raises(RegistryFull):
            registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")

    core.run_locked(half_way)
    registry._check()
    stats = registry.stats()
    assert (stats.accepted, stats.timers) == (2, 2)


# -- user code never runs under the lock ---------------------------------------------------------------------


class Watched:
    """A payload whose destructor checks whether another thread can call the registry."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look

    def __del__(self) -> None:
        self.look()


class Watch:
    """Makes watched objects and collects the findings of their destructors."""

    def __init__(self, registry: AnyRegistry, helper: Helper) -> None:
        self.registry = registry
        self.helper = helper
        self.found: list[bool] = []

    def look(self) -> None:
        """Record whether another thread can call the registry, then call it on this thread."""
        self.found.append(self.helper.can(self.registry.stats))
        self.registry.forget_pending_flow("no such cid")
        self.registry.cancel_timers("no such cid")

    def make(self) -> Watched:
        return Watched(self.look)


@contextmanager
def watching(kind: str, helper: Helper, **options: Any) -> Iterator[tuple[AnyRegistry, Watch]]:
    registry = KINDS[kind](**options)
    yield registry, Watch(registry, helper)
    assert registry.close(PATIENCE)


DROPS: Final = [
    "cancel_timers", "cancel one instance", "handle.cancel", "subscribe again", "unsubscribe",
    "unsubscribe all", "remove_subscriptions_for_cid", "put_pending_flow", "pending_flow",
    "forget_pending_flow", "reset_state", "reset a queue", "close", "timer delivered", "message delivered",
    "message without targets", "RegistryFull", "install_dispatch", "end_conversation",
]  # fmt: skip


@pytest.mark.parametrize("drop", DROPS)
@both
def test_destructors_never_run_under_the_lock(kind: str, drop: str, helper: Helper) -> None:
    """Fault: an operation drops the last reference to a payload while it holds the lock. A destructor that waits for
    another thread, perhaps because it logs or closes a connection, then waits without end."""
    with watching(kind, helper) as (registry, watch):
        names: dict[str, Any] = {"cid": "c1", "instance_id": "main"}
        delay = HOUR
        handle: TimerHandle | None = None
        if drop in ("timer delivered", "message delivered", "message without targets"):
            delay = 0
        if drop in (
            "cancel_timers",
            "cancel one instance",
            "handle.cancel",
            "reset_state",
            "close",
            "timer delivered",
            "end_conversation",
        ):
            handle = registry.schedule_event(**names, delay_ms=delay, event=("tick", watch.make()))
        if drop in (
            "subscribe again",
            "unsubscribe",
            "unsubscribe all",
            "remove_subscriptions_for_cid",
            "reset_state",
            "end_conversation",
        ):
            registry.subscribe(**names, topic="t", event=("said", watch.make()))
        if drop in (
            "put_pending_flow",
            "pending_flow",
            "forget_pending_flow",
            "reset_state",
            "close",
            "end_conversation",
        ):
            registry.put_pending_flow("c1", watch.make())
        expected = {"reset_state": 3, "close": 2, "end_conversation": 3}.get(drop, 1)
        with watchdog():
            match drop:
                case "cancel_timers":
                    registry.cancel_timers("c1")
                case "cancel one instance":
                    registry.cancel_timers("c1", instance_id="main")
                case "handle.cancel":
                    assert handle is not None
                    handle.cancel()
                case "subscribe again":
                    registry.subscribe(**names, topic="t", event="said")
                case "unsubscribe":
                    registry.unsubscribe(**names, topic="t")
                case "unsubscribe all":
                    registry.unsubscribe(**names)
                case "remove_subscriptions_for_cid":
                    registry.remove_subscriptions_for_cid("c1")
                case "put_pending_flow":
                    registry.put_pending_flow("c1", "other")
                case "pending_flow":
                    registry.pending_flow("c1")
                case "forget_pending_flow":
                    registry.forget_pending_flow("c1")
                case "reset_state":
                    registry.reset_state()
                case "reset a queue":
                    with registry_held(registry):
                        registry.subscribe(**names, topic="t", event="said")
                        registry.publish("t", watch.make())
                        registry.reset_state()
                case "end_conversation":
                    registry.end_conversation("c1")
                case "close":
                    assert registry.close(PATIENCE)
                case "timer delivered":
                    assert registry.settle(PATIENCE)
                case "message delivered":
                    registry.subscribe(**names, topic="t", event="said")
                    registry.publish("t", watch.make())
                    assert registry.settle(PATIENCE)
                case "message without targets":
                    with registry_held(registry):
                        registry.subscribe(**names, topic="t", event="said")
                        registry.publish("t", watch.make())
                        registry.unsubscribe(**names)
                    assert registry.settle(PATIENCE)
                case "RegistryFull":
                    registry._driver.core.engine.max_pending = 0
                    with pytest.raises(RegistryFull):
                        registry.schedule_event(**names, delay_ms=0, event=("tick", watch.make()))
                    registry._driver.core.engine.max_pending = 1
                case "install_dispatch":
                    registry.install_dispatch(Handler(watch.make()))
                    registry.install_dispatch(lambda cid, event: None)
        if kind == "memory":  # the scheduler thread drops a payload a moment after `settle` returns
            deadline = time.monotonic() + PATIENCE
            while len(watch.found) < expected and time.monotonic() < deadline:
                helper.can(lambda: threading.Event().wait(0.001))
        assert watch.found == [True] * expected, f"{drop}: of {expected} destructors {watch.found} found the lock free"
        registry._check()


class Handler:
    """A dispatch that holds an object."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __call__(self, cid: str, event: Event) -> None:
        """Do nothing."""


@contextmanager
def registry_held(registry: AnyRegistry) -> Iterator[None]:
    """Keep the delivery thread busy for the length of the block."""
    if isinstance(registry, VirtualRegistry):
        yield
        return
    entered, go_on = threading.Event(), threading.Event()

    def dispatch(cid: str, event: Event) -> None:
        if cid == "hold":
            entered.set()
            go_on.wait(PATIENCE)

    registry.install_dispatch(dispatch)
    registry.schedule_event(cid="hold", instance_id="main", delay_ms=0, event="hold")
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()


@both
def test_dispatch_on_error_and_logging_run_outside_the_lock(
    kind: str, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: dispatch, `on_error` or a log handler is called under the lock, and cannot wait for another thread."""
    found: list[tuple[str, bool]] = []

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            look("log")

    def look(who: str) -> None:
        found.append((who, helper.can(registry.stats)))

    def dispatch(cid: str, event: Event) -> None:
        look(event.name)
        raise ValueError(event.name)

    registry = KINDS[kind](on_error=lambda cid, event, exc: look("on_error"))
    registry.install_dispatch(dispatch)
    logger = logging.getLogger("stube")
    monkeypatch.setattr(logger, "handlers", [Handler()])
    monkeypatch.setattr(logger, "propagate", False)
    registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
    with watchdog():
        registry.publish("t", 1)
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        assert registry.settle(PATIENCE)
    assert found == [(who, True) for name in ("said", "tick") for who in (name, "log", "on_error")]
    assert registry.close(PATIENCE)


def test_the_clock_is_read_outside_the_lock(helper: Helper) -> None:
    """Fault: `clock`, which is user code, is called under the lock."""
    found: list[bool] = []
    looking = threading.Event()

    def clock() -> int:
        if looking.is_set() and threading.current_thread().name != "helper":
            found.append(helper.can(registry.subscriptions))
        return time.monotonic_ns()

    registry = MemoryRegistry(clock=clock)
    registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
    main_only = threading.Lock()  # the helper serves one thread at a time
    looking.set()
    with watchdog(), main_only:
        registry._driver.core.started = True  # so that no thread starts, and this one runs the round
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=HOUR, event="tick")
        registry.publish("t", 1)
        registry.inspect()
        assert not registry.settle(0)
        registry._driver._round(None)
    looking.clear()
    assert len(found) >= 4
    assert all(found), f"of {len(found)} readings {found.count(False)} were made under the lock"
    registry._check()
    check_ledger(registry)
    assert registry.close(PATIENCE)


@both
def test_hash_and_equality_of_names_never_run_in_the_registry(kind: str, helper: Helper) -> None:
    """Fault: a `str` subclass is stored as it came, and its `__hash__` and `__eq__` run inside the engine."""

    class Name(str):
        __slots__ = ()

        @override
        def __hash__(self) -> int:
            raise AssertionError("hashed")

        @override
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    class Opaque:
        __hash__ = None  # type: ignore[assignment]

        @override
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __bool__(self) -> bool:
            raise AssertionError("tested")

    registry = KINDS[kind]()
    seen: list[object] = []
    registry.install_dispatch(lambda cid, event: seen.append(type(cid)))
    names: dict[str, Any] = {"cid": Name("c1"), "instance_id": Name("main")}
    for _ in range(2):
        registry.subscribe(**names, topic=Name("t"), event=(Name("said"), Opaque()))
        registry.put_pending_flow(Name("c1"), Opaque())
        registry.schedule_event(**names, delay_ms=0, event=(Name("tick"), Opaque()))
        registry.publish(Name("t"), Opaque())
    assert registry.settle(PATIENCE)
    handle = registry.schedule_event(**names, delay_ms=HOUR, event=Name("tick"))
    assert handle.cancel()
    registry.cancel_timers(Name("c1"), instance_id=Name("main"))
    assert registry.unsubscribe(**names, topic=Name("t")) == 1
    registry.remove_subscriptions_for_cid(Name("c1"))
    assert registry.forget_pending_flow(Name("c1"))
    assert seen == [str] * 4
    registry._check()
    assert registry.close(PATIENCE)


# -- the collector, at its own moments -----------------------------------------------------------------------


@both
def test_finalizers_that_the_collector_runs_may_call_every_operation(kind: str) -> None:
    """Fault: a collection in the middle of an operation runs a finalizer that calls the registry: it deadlocks, or
    damages the engine."""
    registry = KINDS[kind]()
    choice = random.Random(17)
    finalized = 0

    class Cyclic:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal finalized
            finalized += 1
            act(choice, registry)

    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # so that the collections below are small: they skip the objects of the test run
    with watchdog():
        try:
            gc.set_threshold(1)
            for _ in range(2000):
                Cyclic()
                act(choice, registry)
        finally:
            gc.set_threshold(*threshold)
            gc.unfreeze()
            gc.collect()
    assert finalized == 2000
    check_invariants(registry)


def act(choice: random.Random, registry: AnyRegistry) -> None:
    """Make one random call."""
    cid, instance_id, topic = (f"{letter}{choice.randrange(3)}" for letter in "cit")
    match choice.randrange(16):
        case 0 | 1 | 2:
            delay = choice.choice((0, 0.01, 1, HOUR))
            handle = registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay, event=("tick", object()))
            if choice.random() < 0.3:
                handle.cancel()
        case 3 | 4:
            registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=("said", object()))
        case 5 | 6:
            registry.publish(topic, object())
        case 7:
            registry.cancel_timers(cid, instance_id=choice.choice((None, instance_id)))
        case 8:
            registry.unsubscribe(cid=cid, instance_id=instance_id, topic=choice.choice((None, topic)))
        case 9:
            registry.remove_subscriptions_for_cid(cid)
        case 10:
            registry.put_pending_flow(cid, object())
        case 11:
            registry.pending_flow(cid)
        case 12:
            registry.forget_pending_flow(cid)
        case 13:
            registry.subscriptions()
            registry.inspect(cid)
        case 14:
            registry.stats()
            registry.sizes()
        case 15:
            if choice.random() < 0.2:
                registry.reset_state()
            else:
                registry.install_dispatch(lambda cid, event: None)


def check_invariants(registry: AnyRegistry) -> None:
    """Assert that the registry is consistent and still delivers; then close it."""
    registry.install_dispatch(lambda cid, event: fired.append(event.name))
    fired: list[str] = []
    with watchdog():
        registry.settle(PATIENCE)
        registry._check()
        registry.schedule_event(cid="new", instance_id="main", delay_ms=0, event="new")
        assert registry.settle(PATIENCE)
        assert "new" in fired
        check_ledger(registry)
        registry._check()
        assert registry.sizes()["deferred"] == 0
        registry.reset_state()
        sizes = registry.sizes()
        assert not any(sizes.values()), sizes
        assert registry.close(PATIENCE)
    check_ledger(registry)


# -- real signals --------------------------------------------------------------------------------------------


@both
def test_signal_handlers_may_call_every_operation(kind: str) -> None:
    """Fault: a signal handler in the middle of an operation deadlocks or damages the registry.

    Real signals come for 2 s. They strike between those bytecodes where the interpreter really checks for signals.
    """
    registry = KINDS[kind]()
    registry.install_dispatch(lambda cid, event: None)
    outside, inside = random.Random(1), random.Random(2)
    handled = 0
    busy = False
    errors: list[BaseException] = []

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal handled, busy
        if busy:
            return  # on a slow machine signals must not pile up
        busy = True
        try:
            act(inside, registry)
            handled += 1
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            errors.append(exc)
        finally:
            busy = False

    previous = signal.signal(signal.SIGALRM, handler)
    ends = time.monotonic() + 2
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        while time.monotonic() < ends and not errors:
            act(outside, registry)
            if isinstance(registry, VirtualRegistry) and outside.random() < 0.05:
                registry.advance(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not errors, errors[0]
    assert handled > 100
    check_invariants(registry)


# -- signal handlers that raise ------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """The exception of the signal handler; no other code raises it."""


def interrupt() -> None:
    """Raise, as a signal handler may."""
    raise Interrupted


def soundness(registry: AnyRegistry, helper: Helper) -> str | None:
    """Describe which promise of `test_a_reset_recovers_from_an_interrupt_at_any_line` is broken; None if none is."""
    if not helper.can(registry.subscriptions, 0.3):
        return "another thread cannot take the lock"
    if not helper.can(lambda: registry.put_pending_flow("c5", 1), 0.3):
        return "another thread cannot put a baton"
    registry.subscriptions()
    registry.stats()
    registry.reset_state()
    for part in (
        registry._driver.core.engine.records,
        registry._driver.core.engine.order,
        registry._driver.core.engine.topics,
    ):
        part._check()
    sizes = registry.sizes()
    if any(sizes.values()):
        return f"after reset_state: {sizes}"
    stats = registry.stats()
    if min(asdict(stats).values()) < 0:
        return f"negative after reset_state: {stats}"
    if (stats.timers, stats.queued, stats.subscriptions, stats.pending_flows) != (0, 0, 0, 0):
        return f"after reset_state: {stats}"
    fired = threading.Event()
    registry.install_dispatch(lambda cid, event: fired.set())
    registry.schedule_event(cid="new", instance_id="main", delay_ms=0, event="new")
    if isinstance(registry, VirtualRegistry):
        registry.advance(0)
    if not fired.wait(1):  # it takes 0.1 ms unless the scheduler thread was not woken
        return "a new timer does not fire"
    return None


@pytest.mark.parametrize("outer", list(OPERATIONS))
@both
def test_a_reset_recovers_from_an_interrupt_at_any_line(kind: str, outer: str) -> None:
    """Fault: Ctrl-C in an operation leaves the lock held (every other thread hangs), or a state that `reset_state`
    cannot clear, or a scheduler thread that no call wakes any more.

    Guaranteed after an asynchronous exception in the middle of an operation: the lock is free; the snapshots and
    `reset_state` work; after a reset all figures are zero and the registry is usable. Not guaranteed: that the ledger
    counts the interrupted operation completely, so that its equation may be wrong by this operation.
    """
    faults = []
    helper = Helper()
    at = 0
    while True:
        registry = KINDS[kind]()
        scene = Scene(registry)
        injector = injector_at(at, interrupt, raising=True)
        with watchdog():
            try:
                injector.run(lambda: OPERATIONS[outer](scene, "outer"))  # noqa: B023
            except Interrupted:
                pass
            scene.release()
            if kind == "memory" and helper.can(registry.subscriptions, 0.3):
                registry.settle(0.2)  # let the delivery of the scene end
            fault: object
            try:
                fault = soundness(registry, helper)
            except Exception as exc:  # noqa: BLE001 - collected
                fault = repr(exc)
        if fault is not None:
            faults.append(f"{injector.fired}: {fault}")
            if helper.stuck:
                helper = Helper()
            while registry._driver.core.lock._is_owned():  # type: ignore[attr-defined]
                registry._driver.core.release()  # for the threads that wait
        registry.close(1 if fault is None else 0)
        if not injector.fired or len(faults) == 8:
            break
        at += 1
    helper.end()
    assert at > 3
    assert not faults, f"at {len(faults)} of {at} lines:\n" + "\n".join(faults[:20])


# An exception that a signal handler raises inside a weak reference's callback goes to the unraisable hook.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@both
def test_a_reset_recovers_from_real_signals_that_raise(kind: str) -> None:
    """Fault: as above, but only at the instants at which the interpreter really handles signals.

    Each real signal comes 5 to 150 us after the alarm was set, so that the signals strike all parts of the operations.
    """
    choice = random.Random(3)
    helper = Helper()
    registry = KINDS[kind]()
    faults: list[str] = []
    hits = 0
    armed = False

    def handler(number: int, frame: FrameType | None) -> None:
        if armed:
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    ends = time.monotonic() + 1.5
    try:
        while time.monotonic() < ends and len(faults) < 5:
            where = "nowhere"
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, choice.uniform(5e-6, 150e-6))
                for _ in range(1000):
                    act(choice, registry)
            except Interrupted as exc:
                armed = False
                hits += 1
                traceback = exc.__traceback__
                while traceback is not None:
                    where = f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
                    traceback = traceback.tb_next
                    if "test_reentrancy" not in where and traceback and traceback.tb_frame.f_code is handler.__code__:
                        break
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            fault: str | None
            try:
                fault = soundness(registry, helper)
            except Exception as exc:  # noqa: BLE001 - collected
                fault = repr(exc)
            if fault is not None:
                faults.append(f"{where}: {fault}")
                if helper.stuck:
                    helper = Helper()
                while registry._driver.core.lock._is_owned():  # type: ignore[attr-defined]
                    registry._driver.core.release()
                registry.close(0)
                registry = KINDS[kind]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        helper.end()
    registry.close(1)
    assert hits > 100
    assert not faults, f"{len(faults)} faults in {hits} hits:\n" + "\n".join(faults)


def test_an_interrupt_of_a_reentrant_call_leaves_the_lock_free() -> None:
    """Fault: Ctrl-C strikes a finalizer's re-entrant call. The level of the lock that this call took stays taken, and
    every other thread hangs."""
    faults = []
    helper = Helper()
    at = 0
    while True:
        registry = VirtualRegistry()
        injector = injector_at(at, interrupt, raising=True)

        def reentrant(registry: VirtualRegistry = registry, injector: Injector = injector) -> None:
            try:
                injector.run(lambda: registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick"))
                injector.run(lambda: registry.put_pending_flow("c1", 1))
            except Interrupted:
                pass  # the interpreter also ignores exceptions that leave a finalizer

        registry._driver.core.run_locked(reentrant)
        if not helper.can(registry.subscriptions, 0.3):
            faults.append(injector.fired)
            helper = Helper()
            while registry._driver.core.lock._is_owned():  # type: ignore[attr-defined]
                registry._driver.core.release()
        registry.reset_state()
        registry._check()
        if not injector.fired:
            break
        at += 1
    helper.end()
    assert at > 10
    assert not faults, f"the lock stays taken at {faults}"


def test_an_interrupt_at_any_line_of_advance_loses_no_lock_and_no_count() -> None:
    """Fault: Ctrl-C between the claim of a delivery and its end leaves the delivery counted as running, or leaves the
    clock reserved for a thread that has gone. Guaranteed are the promises of
    `test_a_reset_recovers_from_an_interrupt_at_any_line`, and that no delivery counts as running.

    (A `KeyboardInterrupt` inside a handler leaves the state consistent without a reset; see the tests of the virtual
    backend.)
    """
    faults = []
    helper = Helper()
    at = 0
    while True:
        registry = VirtualRegistry()
        seen: list[str] = []
        _deliverable(registry, seen)
        injector = injector_at(at, interrupt, raising=True)
        fault: str | None = None
        try:
            injector.run(lambda: registry.advance(1))  # noqa: B023
        except Interrupted:
            pass
        except Exception as exc:  # noqa: BLE001 - collected
            fault = repr(exc)
        if not helper.can(registry.subscriptions, 0.3):
            fault = "the lock stays taken"
        if fault is None:
            try:
                fault = soundness(registry, helper)
                if fault is None and registry.stats().running:
                    fault = f"a delivery still counts as running: {registry.stats()}"
            except Exception as exc:  # noqa: BLE001 - collected
                fault = repr(exc)
        elif helper.stuck:
            helper = Helper()
            while registry._driver.core.lock._is_owned():  # type: ignore[attr-defined]
                registry._driver.core.release()
        if fault is not None:
            faults.append(f"{injector.fired}: {fault}")
        if not injector.fired:
            break
        at += 1
    helper.end()
    assert at > 100
    assert not faults, f"at {len(faults)} of {at} lines:\n" + "\n".join(faults[:20])


def test_an_interrupt_while_the_thread_starts_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: Ctrl-C strikes the first `schedule_event` while it waits until its thread has started. The operation
    raises, the thread runs, and the next operation starts a second one, which delivers at the same time (G1)."""
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        raise Interrupted

    running = overlaps = 0
    guard = threading.Lock()
    both_inside = threading.Event()

    def dispatch(cid: str, event: Event) -> None:
        nonlocal running, overlaps
        with guard:
            running += 1
            overlaps += running > 1
        if running > 1:
            both_inside.set()
        if not overlaps:
            both_inside.wait(0.05)  # a second thread would come within 1 ms; no event tells that none comes
        with guard:
            running -= 1

    registry = MemoryRegistry()
    registry.install_dispatch(dispatch)
    before = serving_threads()
    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(Interrupted):
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    monkeypatch.undo()
    for _ in range(3):
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    registry.join(PATIENCE)
    for thread in serving_threads() - before:
        if thread.ident != registry._driver._loop_thread_id:
            thread.join(PATIENCE)  # a thread that must not serve ends when it looks
    started = len(serving_threads() - before)
    closed = registry.close(2)
    assert (started, overlaps) == (1, 0)
    assert closed
    for thread in serving_threads() - before:
        thread.join(PATIENCE)
    assert not serving_threads() - before
