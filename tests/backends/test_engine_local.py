"""Tests of a local registry that the test drives by hand: wake-ups, waiting, deferred calls, and deliveries."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from typing_extensions import override

import stube
from stube import ConversationEnded, Event, RegistryClosed, RegistryFull
from stube_backends.engine import (
    EARLIEST,
    Core,
    Deliverer,
    Driver,
    Engine,
    Failures,
    LocalRegistry,
    Options,
    wait_until_idle,
)
from stube_backends.engine._arguments import checked_dispatch
from stube_backends.engine._core import FOREVER, REENTRANT, Waiter
from stube_backends.engine._inspection import sizes
from stube_backends.engine._process import live_registries
from stube_backends.engine._serial import SerialClaims
from stube_backends.engine._timers import Timer
from stube_backends.engine._waiting import decide_sleep_locked
from stube_backends.engine._wheel import SLOT_BITS

SLOT = 1 << SLOT_BITS
MS = 1_000_000
PATIENCE = 10.0  # seconds, reached only when something is wrong
CLOSED = "The registry is closed, so nothing can be added to it. Create a new one."
LINK = {"cid": "c", "instance_id": "i"}


class HandDriver(Driver):
    """A driver that delivers only when the test calls `deliver`, with the instant that the test gives."""

    __slots__ = ("_deliverer", "clock", "core", "reraised", "started", "stopped", "wakes")

    core: Core

    def __init__(
        self, core: Core, clock: Callable[[], int], on_error: Any, reraised: tuple[type[BaseException], ...]
    ) -> None:
        self.core = core
        self.clock = clock
        self.started = 0
        self.wakes = 0
        self.stopped: list[float | None] = []
        self._deliverer = Deliverer(core, Failures(on_error, reraised), clock)

    def deliver(self, now: int) -> int:
        return self._deliverer.deliver(now, self._nothing_ready_locked)

    def _nothing_ready_locked(self, now: int, fresh: bool) -> None:
        decide_sleep_locked(self.core, now, fresh)

    @override
    def enter(self) -> Core:
        return self.core

    @override
    def prepare(self, dispatch: Callable[..., Any]) -> stube.Dispatch:
        checked_dispatch(dispatch)
        return dispatch

    @override
    def start(self) -> None:
        self.core.engine.require_open()
        self.started += 1
        self.core.started = True

    @override
    def stop(self, timeout: float | None) -> bool:
        self.stopped.append(timeout)
        return not self.core.is_reentrant()

    @override
    def wake(self) -> None:
        self.wakes += 1
        self.core.sleep_until = EARLIEST

    @override
    def wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        return wait_until_idle(self.core, self.wake, self.clock(), timeout, timers_too=timers_too)

    @override
    def delivers_here(self) -> bool:
        return False

    @override
    def call_back(self, function: Callable[..., object], *arguments: Any) -> None:
        function(*arguments)


class ByHand(LocalRegistry):
    """A registry whose clock and deliveries the test controls."""

    reraised: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
    _driver: HandDriver

    def __init__(self, *, on_error: Any = None, max_pending: int | None = None) -> None:
        self.now = 0
        self.seen: list[tuple[str, str, str, object]] = []
        super().__init__(Options.checked(clock=self.read, max_pending=max_pending, on_error=on_error))
        self.install_dispatch(self.see)

    def _new_engine(self) -> Engine[Any]:
        return Engine(self._options.max_pending)

    @override
    def _new_driver(self, dispatch: stube.Dispatch) -> HandDriver:
        return HandDriver(Core(self._new_engine(), dispatch), self.read, self._options.on_error, self.reraised)

    def read(self) -> int:
        return self.now

    @property
    def driver(self) -> HandDriver:
        return self._driver

    @property
    def core(self) -> Core:
        return self._driver.core

    @property
    def engine(self) -> Engine:
        return self._driver.core.engine

    def see(self, cid: str, event: Event) -> None:
        self.seen.append((cid, event.instance_id, event.name, event.payload))

    def deliver(self) -> int:
        count = self._driver.deliver(self.now)
        assert not self.core.mutating
        self._check()
        return count

    def within(self, operation: Callable[[], Any]) -> Any:
        """Call `operation` inside another operation of the registry, as a finalizer does."""
        result = self.core.run_locked(operation)
        self._check()
        assert not self.core.deferred
        assert not self.core.mutating
        assert not self.core.is_reentrant()
        return result


class HookedClaims(SerialClaims):
    """Calls a function in the middle of a claim."""

    before_begin: Callable[[], None]

    @override
    def begin(self, now: int, failed: bool | None = None) -> Any:
        self.before_begin()
        return super().begin(now, failed)


class Hooked(Engine[HookedClaims]):
    """An engine that calls a hook, once, in the middle of a claim, a schedule or a publication."""

    hook: Callable[[], None] | None = None

    def __init__(self) -> None:
        super().__init__(None, claims=HookedClaims)
        self.claims.before_begin = self._call_hook

    def _call_hook(self) -> None:
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()

    @override
    def schedule(self, cid: str, instance_id: str, delay: int, event: Any, now: int) -> Timer:
        self._call_hook()
        return super().schedule(cid, instance_id, delay, event, now)

    @override
    def publish(self, topic_name: str, message: Any, now: int, *, checked: bool = False) -> int:
        self._call_hook()
        return super().publish(topic_name, message, now, checked=checked)


class HookedByHand(ByHand):
    """A registry that the test controls, on an engine with a hook."""

    @override
    def _new_engine(self) -> Engine[Any]:
        return Hooked()

    def hook(self, hook: Callable[[], None]) -> None:
        assert isinstance(self.engine, Hooked)
        self.engine.hook = hook


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread meets a condition inside the engine, where it can set no event."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        threading.Event().wait(0.001)


def wait_in_thread(registry: ByHand, *, timers_too: bool) -> tuple[threading.Thread, list[bool]]:
    """Wait for a registry in a new thread. Return the thread, and the list that gets the result."""
    before, results = len(registry.core.waiters), list[bool]()
    thread = threading.Thread(
        target=lambda: results.append(registry.driver.wait(PATIENCE, timers_too=timers_too)),
        daemon=True,
    )
    thread.start()
    until(lambda: len(registry.core.waiters) > before)
    return thread, results


@pytest.fixture
def registry() -> ByHand:
    return ByHand()


def schedule(registry: ByHand, delay_ms: float = 0, event: Any = "e", cid: str = "c", instance_id: str = "i") -> Timer:
    timer = registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
    assert isinstance(timer, Timer)
    return timer


def subscribe(registry: ByHand, *cids: str, topic: str = "t", event: Any = "said") -> None:
    for cid in cids or ("c",):
        registry.subscribe(cid=cid, instance_id="i", topic=topic, event=event)


# Arguments


class Name(str):
    """A name whose class is a user's own."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


ADDING: dict[str, Callable[[ByHand, dict[str, Any]], Any]] = {
    "schedule_event": lambda r, a: r.schedule_event(**{**LINK, "delay_ms": 5, "event": "e", **a}),
    "subscribe": lambda r, a: r.subscribe(**{**LINK, "topic": "t", "event": "e", **a}),
    "unsubscribe": lambda r, a: r.unsubscribe(**{**LINK, "topic": "t", **a}),
    "publish": lambda r, a: r.publish({"topic": "t", **a}["topic"], "m"),
    "put_pending_flow": lambda r, a: r.put_pending_flow({"cid": "c", **a}["cid"], 1),
    "pending_flow": lambda r, a: r.pending_flow({"cid": "c", **a}["cid"]),
    "forget_pending_flow": lambda r, a: r.forget_pending_flow({"cid": "c", **a}["cid"]),
    "cancel_timers": lambda r, a: r.cancel_timers(
        {"cid": "c", **a}["cid"], instance_id={"instance_id": "i", **a}["instance_id"]
    ),
    "remove_subscriptions_for_cid": lambda r, a: r.remove_subscriptions_for_cid({"cid": "c", **a}["cid"]),
    "inspect": lambda r, a: r.inspect({"cid": "c", **a}["cid"]),
}
NAMED = [
    ("schedule_event", ("cid", "instance_id", "event")),
    ("subscribe", ("cid", "instance_id", "topic", "event")),
    ("unsubscribe", ("cid", "instance_id", "topic")),
    ("publish", ("topic",)),
    ("put_pending_flow", ("cid",)),
    ("pending_flow", ("cid",)),
    ("forget_pending_flow", ("cid",)),
    ("cancel_timers", ("cid", "instance_id")),
    ("remove_subscriptions_for_cid", ("cid",)),
    ("inspect", ("cid",)),
]
ROLES = [(operation, role) for operation, roles in NAMED for role in roles]


@pytest.mark.parametrize(("operation", "role"), ROLES)
def test_an_argument_that_is_no_name_is_refused_by_its_role(registry: ByHand, operation: str, role: str) -> None:
    """Fault: an argument is not checked, or the error names another argument (G15)."""
    call = ADDING[operation]
    before = registry.sizes()
    with pytest.raises(ValueError, match="must not be empty") as empty:
        call(registry, {role: ""})
    assert str(empty.value) == f"{role} must not be empty. Pass a name of at least one character."
    with pytest.raises(TypeError) as wrong:
        call(registry, {role: 7})
    if role == "event":
        expected = "event must be a name or (name, *payload), not 7. Pass a str, a tuple or a list."
    else:
        expected = f"{role} must be a str, not 7. Pass the name as a string."
    assert str(wrong.value) == expected
    assert registry.sizes() == before


@pytest.mark.parametrize(("operation", "role"), ROLES)
def test_a_name_of_a_users_class_is_taken_as_its_plain_string(registry: ByHand, operation: str, role: str) -> None:
    """Fault: the engine keeps or hashes the user's object, and the user's code runs inside the engine (G20)."""
    subscribe(registry)
    ADDING[operation](registry, {role: Name("x")})
    registry._check()
    if operation == "schedule_event":
        registry.now = 5 * MS
        registry.deliver()
        assert [type(part) for part in registry.seen[0][:3]] == [str] * 3
    for topic, found in registry.subscriptions().items():
        assert type(topic) is str
        assert {type(part) for key, event in found.items() for part in (*key, event)} == {str}


def test_a_bound_below_one_is_refused() -> None:
    """Fault: the constructor makes a registry that can hold nothing, or the message does not say what to do."""
    for bound in (0, -1):
        with pytest.raises(ValueError, match="max_pending") as caught:
            ByHand(max_pending=bound)
        assert str(caught.value) == f"max_pending must be at least 1, not {bound}. Leave it out, or give None."
    registry = ByHand(max_pending=1)
    schedule(registry)
    with pytest.raises(RegistryFull):
        schedule(registry)


def test_a_baton_is_not_none(registry: ByHand) -> None:
    """Fault: the registry records None, which `pending_flow` returns as if there were no baton."""
    with pytest.raises(TypeError) as caught:
        registry.put_pending_flow("c", None)
    assert str(caught.value) == (
        "flow_id must not be None, because None means that there is no baton. Pass anything else."
    )


def test_taking_the_last_baton_frees_the_large_table(registry: ByHand) -> None:
    """Fault: no call frees the table, or every call tries to (G13)."""
    for number in range(65):
        registry.put_pending_flow(f"c{number}", number)
    assert registry.engine.flows_large
    for number in range(64):
        assert registry.pending_flow(f"c{number}") == number
    assert registry.engine.flows_large
    assert registry.forget_pending_flow("no such cid") is False
    assert registry.forget_pending_flow("c64") is True
    assert not registry.engine.flows_large


def test_removals_cover_and_count_exactly_the_named_entries(registry: ByHand) -> None:
    """Fault: the subscription of another topic is removed, too, or a count is wrong."""
    for topic in ("t", "u", "v"):
        subscribe(registry, "a", "b", topic=topic)
    assert registry.unsubscribe(cid="a", instance_id="i", topic="u") == 1
    assert sorted(registry.subscriptions()["u"]) == [("b", "i")]
    assert registry.unsubscribe(cid="a", instance_id="i") == 2
    assert registry.remove_subscriptions_for_cid("b") == 3
    for instance_id in ("i", "i", "j"):
        schedule(registry, 10, instance_id=instance_id)
    assert registry.cancel_timers("c", instance_id="i") == 2
    assert registry.cancel_timers("c") == 1
    timer = schedule(registry, 10)
    assert [timer.cancel(), timer.cancel()] == [True, False]


def test_snapshots_show_the_named_conversation_and_current_figures(registry: ByHand) -> None:
    """Fault: the snapshot of one conversation shows all of them, or the figures lag behind the running fan-out."""
    queued: list[int] = []
    registry.install_dispatch(lambda _cid, _event: queued.append(registry.stats().queued))
    subscribe(registry, "a", "b", "c")
    registry.publish("t", "m")
    assert set(registry.inspect()) == {"a", "b", "c"}
    assert set(registry.inspect("b")) == {"b"}
    registry.deliver()
    assert queued == [2, 1, 0]


# Wake-ups


def test_only_a_new_earliest_timer_wakes_the_driver(registry: ByHand) -> None:
    """Fault: the driver sleeps past a new earliest timer, or every timer wakes the driver (G10)."""
    schedule(registry, 10)
    assert (registry.driver.started, registry.driver.wakes) == (1, 1)
    registry.deliver()
    assert registry.core.sleep_until == 10 * MS
    schedule(registry, 10)
    schedule(registry, 11)
    assert registry.driver.wakes == 1
    schedule(registry, 9)
    assert (registry.driver.started, registry.driver.wakes) == (1, 2)


def test_a_publication_wakes_a_sleeping_driver_once(registry: ByHand) -> None:
    """Fault: a publication does not wake a sleeping driver, or wakes it without targets, or for each message (G10)."""
    assert registry.publish("t", "m") == 0
    assert (registry.driver.started, registry.driver.wakes) == (0, 0)
    subscribe(registry)
    assert registry.publish("t", "m") == 1
    assert (registry.driver.started, registry.driver.wakes) == (1, 1)
    assert registry.publish("t", "m") == 1
    assert registry.driver.wakes == 1
    registry.deliver()
    assert registry.core.sleep_until == FOREVER
    assert registry.publish("nobody", "m") == 0
    assert registry.driver.wakes == 1
    assert registry.publish("t", "m") == 1
    assert registry.driver.wakes == 2


def test_a_refused_operation_does_not_start_the_driver() -> None:
    """Fault: an operation that raises has started the driver (G23)."""
    registry = ByHand(max_pending=1)
    subscribe(registry, "a", "b")
    with pytest.raises(RegistryFull):
        registry.publish("t", "m")
    assert (registry.driver.started, registry.driver.wakes) == (0, 0)
    subscribe(registry, "c", topic="u")
    assert registry.publish("u", "m") == 1
    registry.close()
    for topic in ("t", "u"):
        with pytest.raises(RegistryClosed) as caught:
            registry.publish(topic, "m")
        assert str(caught.value) == CLOSED
    assert registry.driver.started == 1


@pytest.mark.parametrize("operation", ["cancel", "cancel_timers", "reset_state"])
def test_removals_wake_the_driver_only_for_a_waiter(registry: ByHand, operation: str) -> None:
    """Fault: `join` keeps waiting after the last timer was cancelled, or every cancel wakes the driver."""
    timer = schedule(registry, 10)

    def act() -> None:
        if operation == "cancel":
            timer.cancel()
        elif operation == "cancel_timers":
            registry.cancel_timers("c")
        else:
            registry.reset_state()

    waiting, _ = wait_in_thread(registry, timers_too=True)
    registry.deliver()
    assert registry.core.sleep_until == EARLIEST or registry.core.waiters
    wakes = registry.driver.wakes
    act()
    assert registry.driver.wakes == wakes + 1
    registry.deliver()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert registry.core.waiters == []
    timer = schedule(registry, 10)
    wakes = registry.driver.wakes
    act()
    assert registry.driver.wakes == wakes


# Waiting


def test_waiting_with_nothing_pending_returns_immediately(registry: ByHand) -> None:
    """Fault: a call waits for an idle registry, or wakes its driver."""
    assert registry.driver.wait(0.0, timers_too=True) is True
    schedule(registry, 10)
    wakes = registry.driver.wakes
    assert registry.driver.wait(0.0, timers_too=False) is True
    assert (registry.driver.wakes, registry.core.waiters) == (wakes, [])


def test_a_wait_that_times_out_leaves_no_waiter(registry: ByHand) -> None:
    """Fault: a waiter that timed out stays in the list (G13), or the wait does not wake the driver."""
    schedule(registry, 10)
    wakes = registry.driver.wakes
    assert registry.driver.wait(0.001, timers_too=True) is False
    assert (registry.driver.wakes, registry.core.waiters) == (wakes + 1, [])


def test_each_waiter_is_released_when_its_condition_holds(registry: ByHand) -> None:
    """Fault: `settle` waits for timers that are not due, `join` does not wait for them, or only one is released."""
    schedule(registry, 0)
    schedule(registry, 10)
    joins = [wait_in_thread(registry, timers_too=True) for _ in range(2)]
    settles = [wait_in_thread(registry, timers_too=False) for _ in range(2)]
    assert registry.deliver() == 1  # not fresh: a timer may have become due during the delivery
    assert len(registry.core.waiters) == 4
    assert registry.core.sleep_until == EARLIEST
    assert registry.deliver() == 0
    for thread, results in settles:
        thread.join(PATIENCE)
        assert results == [True]
    assert len(registry.core.waiters) == 2
    registry.now = 10 * MS
    assert registry.deliver() == 1
    assert registry.deliver() == 0
    for thread, results in joins:
        thread.join(PATIENCE)
        assert results == [True]


def test_a_wait_without_a_timeout_lasts_until_the_registry_is_idle(registry: ByHand) -> None:
    """Fault: `join()` returns before the registry is idle."""
    schedule(registry)
    ended = threading.Event()

    def wait() -> None:
        if registry.driver.wait(None, timers_too=True):
            ended.set()

    threading.Thread(target=wait, daemon=True).start()
    until(lambda: registry.core.waiters)
    registry.deliver()
    registry.deliver()
    assert ended.wait(PATIENCE)


def test_a_waiter_waits_for_timers_that_were_due_when_it_began(registry: ByHand) -> None:
    """Fault: a round that began before the waiter releases it, because its instant is too early."""
    schedule(registry, 10)
    registry.now = 20 * MS
    waiting, _ = wait_in_thread(registry, timers_too=False)
    assert registry.driver.deliver(5 * MS) == 0
    assert len(registry.core.waiters) == 1
    assert registry.deliver() == 1
    assert registry.deliver() == 0
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


@pytest.mark.parametrize(("timeout", "passed"), [(None, -1), (0.25, 0.25)])
def test_the_timeout_is_passed_to_the_lock(
    registry: ByHand, monkeypatch: pytest.MonkeyPatch, timeout: float | None, passed: float
) -> None:
    """Fault: a wait without a timeout ends after some time."""
    asked: list[float | None] = []

    class Lock:
        def acquire(self, *, timeout: float | None = None) -> bool:
            asked.append(timeout)
            return True

    monkeypatch.setattr(threading, "Lock", Lock)
    schedule(registry, 10)
    assert registry.driver.wait(timeout, timers_too=True) is True
    assert asked == [None, passed]


def test_a_close_inside_a_delivery_releases_the_waiter(registry: ByHand) -> None:
    """Fault: a call waits for a closed registry until the timeout."""
    schedule(registry)
    schedule(registry, 10)
    waiting, ended = wait_in_thread(registry, timers_too=True)

    def dispatch(_cid: str, _event: Event) -> None:
        registry.close()

    registry.install_dispatch(dispatch)
    assert registry.deliver() == 1
    waiting.join(PATIENCE)
    assert ended == [True]


def test_waiting_inside_an_operation_of_the_registry_is_refused(registry: ByHand) -> None:
    """Fault: a signal handler waits without end for the operation that it interrupts, or the error message is wrong."""

    def wait() -> str:
        with pytest.raises(RuntimeError) as caught:
            registry.driver.wait(0.0, timers_too=True)
        return str(caught.value)

    assert registry.within(wait) == (
        "settle() or join() would deadlock here, because a signal handler or finalizer called it in the middle of "
        "another operation of this registry. Call it after that operation has returned."
    )


def test_a_waiter_is_released_once(registry: ByHand) -> None:
    """Fault: the waiter stays in the list until it wakes up, and is released a second time, which raises."""
    lock = threading.Lock()
    lock.acquire()
    registry.core.waiters.append(Waiter(True, 0, lock))
    assert registry.deliver() == registry.deliver() == 0
    assert not lock.locked()
    assert registry.core.waiters == []


def test_a_snapshot_is_taken_once_and_under_the_lock(registry: ByHand) -> None:
    """Fault: a snapshot is taken while another thread changes the engine (G16)."""
    held: list[bool] = []
    registry._read(registry.core, lambda: held.append(registry.core.is_reentrant()))
    assert held == [True]


def test_the_figures_are_read_under_the_lock(registry: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the figures are read while another thread changes them, and do not add up."""
    monkeypatch.setattr(Engine, "stats_as_they_stand", lambda _engine: pytest.fail("read without the lock"))
    schedule(registry, 10)
    assert registry.stats().timers == 1


def test_no_operation_leaves_the_engine_marked_as_mutating(registry: ByHand) -> None:
    """Fault: the mark of a change in progress stays, and the next Ctrl-C rebuilds a consistent engine (G20)."""
    schedule(registry, 10)
    assert not registry.core.mutating
    subscribe(registry)
    assert not registry.core.mutating
    registry.publish("t", "m")
    assert not registry.core.mutating


# How long the driver sleeps, and what keeps a registry alive


def test_the_driver_sleeps_until_a_timer_can_be_due(registry: ByHand) -> None:
    """Fault: the driver sleeps past a timer, or does not sleep although nothing is pending (G10)."""
    assert registry.deliver() == 0
    assert registry.core.sleep_until == FOREVER
    schedule(registry, 1e300)
    registry.deliver()
    assert registry.core.sleep_until == FOREVER
    schedule(registry, 1000)
    registry.deliver()
    assert registry.core.sleep_until == 1000 * MS >> SLOT_BITS << SLOT_BITS
    registry.now = 999 * MS
    registry.deliver()
    assert registry.core.sleep_until == 1000 * MS


@pytest.mark.parametrize("how", ["delivered", "cancelled", "cancelled all", "reset", "closed"])
def test_a_registry_is_kept_alive_exactly_while_work_is_pending(registry: ByHand, how: str) -> None:
    """Fault: a dropped registry is collected while a timer is pending, or not collected when none is (G13)."""
    subscribe(registry)
    assert registry.sizes()["keepalive"] == 0
    first, _ = schedule(registry, 10), schedule(registry, 10)
    assert registry.core.keepalive == [registry]
    registry.deliver()
    assert registry.core.keepalive == [registry]
    first.cancel()
    assert registry.publish("t", "m") == 1
    assert registry.sizes()["keepalive"] == 1
    registry.cancel_timers("c")
    assert registry.sizes()["keepalive"] == 1  # the message
    if how == "delivered":
        registry.deliver()
    elif how.startswith("cancelled"):
        registry.deliver()
        timer = schedule(registry, 10)
        assert registry.sizes()["keepalive"] == 1
        timer.cancel() if how == "cancelled" else registry.cancel_timers("c")
    elif how == "reset":
        registry.reset_state()
    else:
        registry.close()
    assert registry.core.keepalive == []


def test_a_message_alone_keeps_the_registry_alive(registry: ByHand) -> None:
    """Fault: only timers keep a dropped registry alive, and its messages are lost (G13)."""
    subscribe(registry)
    assert registry.publish("t", "m") == 1
    assert registry.core.keepalive == [registry]
    registry.publish("t", "m")
    assert registry.core.keepalive == [registry]


def test_a_publication_without_subscribers_keeps_nothing_alive(registry: ByHand) -> None:
    """Fault: a registry with nothing pending is never collected (G13)."""
    schedule(registry)
    registry.deliver()
    assert registry.publish("nobody", "m") == 0
    assert registry.core.keepalive == []


# Re-entrant calls


def test_a_reentrant_put_pending_flow_takes_effect_immediately(registry: ByHand) -> None:
    """Fault: a later `pending_flow` does not find the baton; or the replaced baton is freed inside the engine (G20)."""
    registry.put_pending_flow("c", "old")

    def act() -> object:
        registry.put_pending_flow("c", "new")
        assert sum(map(len, registry.core.deferred.values())) == 1  # the old baton, to be freed outside the engine
        return registry.pending_flow("c")

    assert registry.within(act) == "new"
    assert registry.pending_flow("c") is None


def test_a_reentrant_timer_is_accepted_when_the_operation_returns(registry: ByHand) -> None:
    """Fault: the timer is lost, due at another instant, counted twice, or does not wake the driver (G20)."""
    made: list[Timer] = []

    def act() -> None:
        made.append(schedule(registry, 10, ("e", 1)))
        assert registry.engine.ledger.accepted == 0

    registry.within(act)
    assert (registry.driver.started, registry.driver.wakes) == (1, 1)
    assert registry.core.keepalive == [registry]
    assert registry.stats().timers == 1
    assert repr(made[0]) == "<Timer 'e' of 'c', 'i'>"
    assert made[0].due == 10 * MS
    registry.now = 10 * MS
    registry.deliver()
    assert registry.seen == [("c", "i", "e", 1)]
    assert made[0].cancel() is False


def test_a_reentrant_timer_can_be_cancelled_inside_the_operation(registry: ByHand) -> None:
    """Fault: the cancel has no effect, or a cancelled timer keeps the registry alive (G5)."""

    def act() -> bool:
        timer = schedule(registry, 10)
        assert timer.cancel() is False  # deferred, as the timer is
        return timer.cancel()

    registry.within(act)
    assert registry.stats().timers == 0
    assert registry.stats().cancelled == 1
    assert registry.core.keepalive == []


def test_a_deferred_timer_of_a_closed_registry_keeps_nothing_alive(registry: ByHand) -> None:
    """Fault: a timer that was dropped keeps a closed registry alive (G13)."""

    def act() -> None:
        schedule(registry, 10)
        registry.engine.close()

    registry.within(act)
    assert registry.stats().dropped == 1
    assert registry.core.keepalive == []


def test_max_pending_counts_deferred_timers() -> None:
    """Fault: deferred timers are not counted (G22)."""
    registry = ByHand(max_pending=3)
    schedule(registry, 10)

    def act() -> None:
        schedule(registry, 10)
        registry.cancel_timers("no such cid")  # a deferred call that is no timer
        schedule(registry, 10)
        with pytest.raises(RegistryFull) as caught:
            schedule(registry, 10)
        assert str(caught.value) == (
            "The registry holds 1 timers and messages, and 1 more would pass max_pending=3. "
            "Raise max_pending, or schedule and publish less."
        )

    registry.within(act)
    assert registry.stats().timers == 3


@pytest.mark.parametrize("instance_id", [None, "i"])
def test_a_reentrant_cancel_covers_exactly_the_named_timers(registry: ByHand, instance_id: str | None) -> None:
    """Fault: the cancel is lost, or covers another instance (G20)."""
    subscribe(registry)
    registry.subscribe(cid="c", instance_id="j", topic="t", event="said")
    schedule(registry, 10)
    schedule(registry, 10, instance_id="j")
    schedule(registry, 10, cid="other")
    assert registry.within(lambda: registry.cancel_timers("c", instance_id=instance_id)) == 0
    assert registry.stats().timers == (1 if instance_id is None else 2)
    assert registry.inspect()["c"].timers == (() if instance_id is None else registry.inspect("c")["c"].timers)


def test_reentrant_subscription_changes_are_deferred(registry: ByHand) -> None:
    """Fault: a change is lost, or affects another subscription (G20)."""
    subscribe(registry, "a", "b", "c")
    registry.subscribe(cid="c", instance_id="j", topic="t", event="said")
    registry.publish("t", "before")
    registry.reset_state()
    subscribe(registry, "a", "b", "c")
    registry.subscribe(cid="c", instance_id="j", topic="t", event="said")

    def act() -> None:
        registry.subscribe(cid="d", instance_id="k", topic="u", event=("heard", 1))
        assert registry.unsubscribe(cid="c", instance_id="i", topic="t") == 0
        assert registry.unsubscribe(cid="a", instance_id="i") == 0
        assert registry.remove_subscriptions_for_cid("b") == 0
        assert set(registry.subscriptions()) == {"t"}  # the changes are deferred
        assert registry.publish("u", "m") == 0
        assert set(registry.inspect()) == {"a", "b", "c"}
        assert registry.stats().subscriptions == 4
        assert registry.sizes()["deferred"] == 5

    registry.within(act)
    assert registry.subscriptions() == {"t": {("c", "j"): "said"}, "u": {("d", "k"): ("heard", 1)}}
    registry.deliver()
    assert registry.seen == [("d", "k", "heard", "m")]


def test_nothing_can_be_added_inside_an_unfinished_close(registry: ByHand) -> None:
    """Fault: calls between the closing of the engine and the end of `close` are deferred, and lost (G24)."""
    subscribe(registry)
    schedule(registry, 10)
    refusals: list[str] = []

    def act() -> None:
        registry.engine.close()
        for operation in (schedule, subscribe, lambda registry: registry.publish("t", "m")):
            with pytest.raises(RegistryClosed) as caught:
                operation(registry)
            refusals.append(str(caught.value))

    registry.within(act)
    assert refusals == [CLOSED] * 3


def test_a_reentrant_unsubscribe_covers_only_its_topic(registry: ByHand) -> None:
    """Fault: the instance is removed from all its topics (G20)."""
    for topic in ("t", "u"):
        subscribe(registry, topic=topic)
    registry.within(lambda: registry.unsubscribe(cid="c", instance_id="i", topic="t"))
    assert list(registry.subscriptions()) == ["u"]


def test_a_reentrant_reset_drops_only_what_came_before_it(registry: ByHand) -> None:
    """Fault: the reset is lost, or also drops a subscription made after it (G18)."""
    subscribe(registry)
    schedule(registry, 10)

    def act() -> None:
        registry.reset_state()
        subscribe(registry, "d")

    registry.within(act)
    assert registry.subscriptions() == {"t": {("d", "i"): "said"}}
    assert registry.stats().dropped == 1
    assert registry.core.keepalive == []


def test_a_reentrant_close_refuses_immediately_and_does_not_wait(registry: ByHand) -> None:
    """Fault: a call can still add work, the close waits for a thread that needs the lock, or work stays (G24)."""
    schedule(registry, 10)
    subscribe(registry)

    def act() -> bool:
        stopped = registry.close(5)
        refused: list[Callable[[], object]] = [
            lambda: schedule(registry),
            lambda: subscribe(registry),
            lambda: registry.publish("t", "m"),
            lambda: registry.install_dispatch(print),
        ]
        for operation in refused[1:3]:
            with pytest.raises(RegistryClosed) as caught:
                operation()
            assert str(caught.value) == CLOSED
        with pytest.raises(RegistryClosed) as caught:
            refused[3]()
        assert str(caught.value) == "The registry is closed, so it delivers nothing any more. Create a new one."
        return stopped

    assert registry.within(act) is False
    assert registry.driver.stopped == [0.0, 0.0]
    assert registry.core.started is False
    assert registry.stats().dropped == 1
    assert set(registry.sizes().values()) == {0}


def test_a_deferred_call_that_fails_is_logged(registry: ByHand, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: the error is lost, or stops the deferred calls after it (G19)."""
    registry = ByHand(max_pending=1)
    subscribe(registry, "a", "b")

    def act() -> None:
        registry.publish("t", "m")
        subscribe(registry, "d")

    with caplog.at_level(logging.DEBUG, "stube"):
        registry.within(act)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "a deferred operation (called from a signal handler or finalizer) failed: "
            "The registry holds 0 timers and messages, and 2 more would pass max_pending=1. "
            "Raise max_pending, or schedule and publish less.",
        )
    ]
    assert registry.stats().subscriptions == 3


def test_many_deferred_calls_run_in_a_loop_without_recursion(registry: ByHand) -> None:
    """Fault: each deferred call runs the remaining ones inside itself, and ten thousand overflow the stack."""

    def act() -> None:
        for number in range(10_000):
            registry.subscribe(cid="c", instance_id="i", topic=f"t{number}", event="e")

    registry.within(act)
    assert registry.stats().subscriptions == 10_000
    assert registry.core.deferred._running == set()


# The core


def test_an_exception_passes_through_run_locked_and_frees_the_lock(registry: ByHand) -> None:
    """Fault: the lock stays taken, or `mutating` stays set, and later calls wait or have no effect (G15)."""
    core = registry.core

    def fail() -> None:
        raise RegistryClosed("raised by the test")

    with pytest.raises(RegistryClosed, match="raised by the test"):
        core.run_locked(fail)
    assert (core.mutating, core.is_reentrant()) == (False, False)
    assert core.run_locked(lambda: (core.mutating, core.is_reentrant())) == (True, True)
    assert core.run_locked(lambda *parts: parts, 1, 2) == (1, 2)
    assert core.run_locked(lambda: core.run_locked(lambda: 1)) is REENTRANT


def test_an_asynchronous_exception_causes_a_rebuild_and_a_refusal_none(
    registry: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: an inconsistent engine is not rebuilt, or every refusal causes a rebuild of everything pending (G20)."""
    schedule(registry, 10)
    engine = registry.engine

    def fail(error: BaseException) -> None:
        registry.core.deferred.defer(subscribe, registry)
        engine.ledger.timers = 7
        raise error

    with pytest.raises(RegistryFull):
        registry.core.run_locked(fail, RegistryFull("refused"))
    assert engine.ledger.timers == 7
    assert engine.topics.count == 1  # the deferred call has run nevertheless
    with pytest.raises(KeyboardInterrupt):
        registry.core.run_locked(fail, KeyboardInterrupt())
    assert engine.ledger.timers == 1
    registry._check()
    assert not registry.core.deferred
    assert (registry.core.mutating, registry.core.is_reentrant()) == (False, False)


def test_recover_without_a_change_in_progress_rebuilds_nothing(registry: ByHand) -> None:
    """Fault: an exception on a thread without the lock rebuilds the engine, or frees the lock, of another (G20)."""
    registry.engine.ledger.timers = 7
    registry.core.recover(KeyboardInterrupt())
    assert registry.engine.ledger.timers == 7
    registry.core.acquire()
    registry.core.recover(KeyboardInterrupt())  # with the lock, but before any change
    assert registry.engine.ledger.timers == 7
    assert not registry.core.is_reentrant()


def test_deferred_calls_run_only_on_the_thread_that_deferred_them(registry: ByHand) -> None:
    """Fault: another thread runs a deferred call, and the thread that deferred it returns before (G21)."""
    deferred, go = threading.Event(), threading.Event()

    def hold() -> None:
        registry.core.deferred.defer(subscribe, registry, "held")
        deferred.set()
        assert go.wait(PATIENCE)
        registry.core.run_deferred()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert deferred.wait(PATIENCE)
    registry.core.run_deferred()
    assert registry.subscriptions() == {}
    assert registry.sizes()["deferred"] == 1
    go.set()
    thread.join(PATIENCE)
    assert registry.subscriptions() == {"t": {("held", "i"): "said"}}
    assert registry.core.deferred == {}


def test_a_core_replaced_after_a_fork_ends_its_fan_out_and_never_blocks(registry: ByHand) -> None:
    """Fault: the child continues the parent's fan-out, or waits for a thread that does not exist in it (G25)."""
    subscribe(registry, "a", "b")
    registry.publish("t", "m")
    old = registry.core
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with old.lock:
            held.set()
            assert go.wait(PATIENCE)

    walked: list[str] = []

    def dispatch(cid: str, _event: Event) -> None:
        walked.append(cid)
        thread.start()
        assert held.wait(PATIENCE)
        registry.start_anew()
        walked.append("the child continues")

    registry.install_dispatch(dispatch)
    thread = threading.Thread(target=hold, daemon=True)
    lock = old.lock
    assert registry.driver.deliver(0) == 1
    go.set()
    thread.join(PATIENCE)
    assert walked == ["a", "the child continues"]
    assert old.lock is not lock
    assert registry.core is not old
    assert registry.core.dispatch is old.dispatch
    assert old.run_locked(lambda: 1) == 1
    assert (registry.core.started, registry.engine.closed) == (False, False)
    assert set(registry.sizes().values()) == {0}


def test_a_child_of_a_closed_registry_is_closed(registry: ByHand) -> None:
    """Fault: a closed registry is open again in a forked child (G25)."""
    registry.close()
    registry.core.acquire()
    old = registry.core
    lock = old.lock
    registry.start_anew()
    assert registry.engine.closed is True
    assert old.lock is lock  # because this thread holds the lock and will release it
    old.release()


# Deliveries


def test_an_event_arrives_with_its_own_payload(registry: ByHand) -> None:
    """Fault: a payload of one value arrives as a tuple, a missing payload as a value, or a list as one payload."""
    none = stube.NO_PAYLOAD
    for event in ("e", ("e",), ("e", 1), ("e", 1, 2), ["e", [3]], ("e", None)):
        schedule(registry, event=event)
    assert registry.deliver() == 6
    assert [payload for *_, payload in registry.seen] == [none, none, 1, (1, 2), [3], None]
    assert {each[:3] for each in registry.seen} == {("c", "i", "e")}


def test_each_target_gets_the_event_name_of_its_subscription(registry: ByHand) -> None:
    """Fault: a target gets the event of the target before it."""
    for cid, instance_id, event in (
        ("a", "i", "x"),
        ("a", "j", "x"),
        ("b", "j", "x"),
        ("b", "k", "y"),
        ("c", "k", ("y", 1)),
    ):
        registry.subscribe(cid=cid, instance_id=instance_id, topic="t", event=event)
    registry.publish("t", None)
    assert registry.deliver() == 5
    assert registry.seen == [
        ("a", "i", "x", None),
        ("a", "j", "x", None),
        ("b", "j", "x", None),
        ("b", "k", "y", None),
        ("c", "k", "y", None),
    ]


def test_neighbouring_targets_of_one_name_share_one_event() -> None:
    """Fault: every target gets a new event, a fifth of the cost of a publication; or unequal targets share one."""
    events: list[Event] = []
    registry = ByHand()
    registry.install_dispatch(lambda _cid, event: events.append(event))
    instance, name = "".join(("i", "nstance")), "".join(("sa", "id"))
    for cid in ("a", "b", "c"):
        registry.subscribe(cid=cid, instance_id=instance, topic="t", event=name)
    registry.publish("t", 1)
    registry.publish("t", 2)
    registry.deliver()
    assert [event.payload for event in events] == [1, 1, 1, 2, 2, 2]
    assert events[0] is events[1] is events[2]
    assert events[3] is not events[2]


def test_deliver_returns_the_number_of_deliveries(registry: ByHand) -> None:
    """Fault: a fan-out counts as one delivery, or a cancelled target counts as delivered."""
    subscribe(registry, "a", "b", "c", "d")
    schedule(registry)
    registry.publish("t", "m")
    schedule(registry)

    def dispatch(cid: str, _event: Event) -> None:
        if cid == "a":
            registry.remove_subscriptions_for_cid("b")
        if cid == "c":
            raise ValueError(cid)

    registry.install_dispatch(dispatch)
    logging.getLogger("stube").disabled = True
    try:
        assert registry.deliver() == 5
    finally:
        logging.getLogger("stube").disabled = False
    stats = registry.stats()
    assert (stats.delivered, stats.failed, stats.cancelled) == (2, 3, 1)  # the two timers belong to "c", too


@pytest.mark.parametrize("kind", ["timer", "fan_out"])
def test_a_failure_is_logged_once_and_passed_to_on_error(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: the log or `on_error` names another delivery or exception, or the traceback is missing (G19)."""
    reported: list[tuple[str, Event, BaseException]] = []
    registry = ByHand(on_error=lambda *parts: reported.append(parts))
    error = ValueError("raised by the test")

    def dispatch(_cid: str, _event: Event) -> None:
        raise error

    registry.install_dispatch(dispatch)
    if kind == "timer":
        schedule(registry, event=("said", "m"))
    else:
        subscribe(registry)
        registry.publish("t", "m")
    with caplog.at_level(logging.DEBUG, "stube"):
        assert registry.deliver() == 1
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("stube", "ERROR")
    assert record.getMessage() == "the delivery of 'said' to instance 'i' of conversation 'c' failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert reported == [("c", Event("i", "said", "m"), error)]
    assert registry.stats().failed == 1


@pytest.mark.parametrize("kind", ["timer", "fan_out"])
def test_an_ended_conversation_is_no_failure(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: `ConversationEnded` is logged as an error, counted as a failure, or passed to `on_error`."""
    registry = ByHand(on_error=lambda *_: pytest.fail("on_error was called"))

    def dispatch(_cid: str, _event: Event) -> None:
        raise ConversationEnded("over")

    registry.install_dispatch(dispatch)
    if kind == "timer":
        schedule(registry, event="said")
    else:
        subscribe(registry)
        registry.publish("t", "m")
    with caplog.at_level(logging.DEBUG, "stube"):
        assert registry.deliver() == 1
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("DEBUG", None)
    assert record.getMessage() == "conversation 'c' ended during the delivery of 'said'"
    assert (registry.stats().delivered, registry.stats().failed) == (1, 0)


class Stop(KeyboardInterrupt):
    """An exception that the registries of this file re-raise."""


@pytest.mark.parametrize("kind", ["timer", "fan_out"])
@pytest.mark.parametrize("where", ["dispatch", "on_error", "log"])
def test_a_reraised_exception_is_counted_first_and_has_no_cause(
    kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: Ctrl-C is swallowed, raised before it is counted, or has the error before it as its cause (G19)."""
    stop = Stop()

    def on_error(_cid: str, _event: Event, exc: BaseException) -> None:
        if where == "on_error":
            raise stop

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if where == "log":
                raise stop

    def dispatch(cid: str, _event: Event) -> None:
        if cid == "a":
            raise stop if where == "dispatch" else ValueError("first")

    registry = ByHand(on_error=on_error)
    registry.install_dispatch(dispatch)
    if kind == "timer":
        for cid in ("a", "b"):
            schedule(registry, cid=cid)
    else:
        subscribe(registry, "a", "b")
        registry.publish("t", "m")
    logger, handler = logging.getLogger("stube"), Handler()
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(handler)
    try:
        with pytest.raises(Stop) as caught:
            registry.deliver()
        assert caught.value is stop
        assert stop.__cause__ is None
        if kind == "timer":
            registry.core.run_locked(registry.engine.claims.abandon)
        registry._check()
        assert (registry.stats().failed, registry.stats().delivered) == (1, 0)
        assert registry.deliver() == 1
    finally:
        logger.removeHandler(handler)
    assert (registry.stats().failed, registry.stats().delivered) == (1, 1)


def test_an_exception_that_is_not_reraised_stops_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a SystemExit of a handler, or an error of `on_error`, ends the delivery thread (G19)."""

    def on_error(_cid: str, _event: Event, exc: BaseException) -> None:
        raise GeneratorExit from exc

    def dispatch(_cid: str, _event: Event) -> None:
        raise SystemExit

    monkeypatch.setattr(logging.getLogger("stube"), "disabled", True)
    registry = ByHand(on_error=on_error)
    registry.install_dispatch(dispatch)
    subscribe(registry, "a", "b")
    registry.publish("t", "m")
    schedule(registry)
    assert registry.deliver() == 3
    assert registry.stats().failed == 3


def test_delivered_payloads_are_freed_before_the_next_delivery(registry: ByHand) -> None:
    """Fault: a variable of the delivery loop keeps the last event, message or timer alive (G13)."""

    class Payload:
        pass

    alive: list[int] = []
    references: list[weakref.ref[Payload]] = []

    def dispatch(_cid: str, event: Event) -> None:
        alive.append(sum(each() is not None for each in references))
        references.append(weakref.ref(event.payload))

    registry.install_dispatch(dispatch)
    subscribe(registry, "a")
    gc.disable()
    try:
        for _ in range(2):
            schedule(registry, event=("e", Payload()))
            registry.publish("t", Payload())
        schedule(registry, event=("e", Payload()))
        registry.deliver()
        assert sum(each() is not None for each in references) == 0
    finally:
        gc.enable()
    assert alive == [0] * 5


def test_delivered_payloads_are_freed_outside_the_lock(registry: ByHand) -> None:
    """Fault: the next claim drops the last reference, and a destructor runs under the lock (G20)."""
    under_lock: list[bool] = []

    class Payload:
        def __del__(self) -> None:
            under_lock.append(registry.core.is_reentrant())

    registry.install_dispatch(lambda _cid, _event: None)
    subscribe(registry)
    for _ in range(3):
        registry.publish("t", Payload())
        registry.publish("t", Payload())
        schedule(registry, event=("e", Payload()))
        schedule(registry, event=("e", Payload()))
    registry.deliver()
    assert under_lock == [False] * 12


@pytest.mark.parametrize("how", ["reset_state", "close", "cancel_timers", "cancel", "unsubscribe", "subscribe"])
def test_discarded_payloads_are_freed_outside_the_lock(registry: ByHand, how: str) -> None:
    """Fault: a destructor runs under the lock (G20)."""
    under_lock: list[bool] = []

    class Payload:
        def __del__(self) -> None:
            under_lock.append(registry.core.is_reentrant())

    timer = schedule(registry, 10)
    if "subscribe" in how:
        subscribe(registry, event=("e", Payload()))
    else:
        timer = schedule(registry, 10, ("e", Payload()))
    if how == "reset_state":
        registry.reset_state()
    elif how == "close":
        registry.close()
    elif how == "cancel_timers":
        registry.cancel_timers("c")
    elif how == "cancel":
        timer.cancel()
    elif how == "unsubscribe":
        registry.unsubscribe(cid="c", instance_id="i")
    else:
        subscribe(registry)
    assert under_lock == [False]


def test_deliveries_before_install_dispatch_count_as_delivered() -> None:
    """Fault: such deliveries fail, or are counted as failed."""

    class Silent(ByHand):
        @override
        def install_dispatch(self, dispatch: Any, /) -> None:
            pass

    registry = Silent()
    schedule(registry)
    assert registry.deliver() == 1
    assert (registry.stats().delivered, registry.stats().failed, registry.seen) == (1, 0, [])


def test_a_registry_is_kept_alive_while_its_last_delivery_runs(registry: ByHand) -> None:
    """Fault: the registry is released when the driver finds nothing more, before the delivery has ended (G13)."""
    held: list[int] = []
    registry.install_dispatch(lambda _cid, _event: held.append(len(registry.core.keepalive)))
    schedule(registry)
    registry.deliver()
    assert (held, registry.core.keepalive) == ([1], [])


def test_each_target_that_has_left_is_counted_as_cancelled(registry: ByHand) -> None:
    """Fault: all targets cancelled in one fan-out count as one."""

    def dispatch(cid: str, _event: Event) -> None:
        for other in ("b", "c"):
            registry.remove_subscriptions_for_cid(other)

    registry.install_dispatch(dispatch)
    subscribe(registry, "a", "b", "c", "d")
    registry.publish("t", "m")
    assert registry.deliver() == 2
    assert (registry.stats().delivered, registry.stats().cancelled) == (2, 2)


def test_by_default_no_exception_is_reraised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a KeyboardInterrupt of a handler ends the scheduler thread of a backend (G19)."""
    monkeypatch.setattr(logging.getLogger("stube"), "disabled", True)
    monkeypatch.setattr(ByHand, "reraised", ())

    def dispatch(_cid: str, _event: Event) -> None:
        raise KeyboardInterrupt

    registry = ByHand()
    registry.install_dispatch(dispatch)
    schedule(registry)
    subscribe(registry)
    registry.publish("t", "m")
    assert registry.deliver() == 2
    assert registry.stats().failed == 2


HOOKED: dict[str, Callable[[HookedByHand], object]] = {
    "deliver": lambda registry: registry.driver.deliver(0),
    "schedule_event": lambda registry: schedule(registry),
    "publish": lambda registry: registry.publish("t", "m"),
}


@pytest.mark.parametrize("operation", HOOKED)
def test_a_deferred_call_runs_before_the_interrupted_one_returns(operation: str) -> None:
    """Fault: the call changes the engine in the middle of the other, or runs only after that has returned (G20)."""
    registry = HookedByHand()
    inside: list[int] = []

    def hook() -> None:
        registry.unsubscribe(cid="b", instance_id="i")
        inside.append(registry.engine.topics.count)
        assert registry.core.mutating

    subscribe(registry, "a", "b")
    registry.publish("t", "m")
    if operation == "deliver":
        registry.install_dispatch(lambda cid, _event: inside.append(registry.engine.topics.count))
    registry.hook(hook)
    HOOKED[operation](registry)
    assert (registry.core.mutating, registry.core.is_reentrant(), registry.core.deferred) == (False, False, {})
    assert inside == ([2, 1] if operation == "deliver" else [2])
    assert registry.engine.topics.count == 1


@pytest.mark.parametrize("operation", HOOKED)
@pytest.mark.parametrize(("error", "rebuilt"), [(RegistryFull, False), (KeyboardInterrupt, True)])
def test_an_exception_frees_the_lock_and_an_interrupt_causes_a_rebuild(
    operation: str, error: type[BaseException], rebuilt: bool
) -> None:
    """Fault: the lock stays taken, deferred calls are lost, or an interrupted engine stays inconsistent (G20)."""
    registry = HookedByHand()
    subscribe(registry, "a")
    registry.publish("t", "m")
    schedule(registry, 10)

    def hook() -> None:
        registry.put_pending_flow("c", "first")
        registry.put_pending_flow("c", "second")
        registry.engine.ledger.timers = 7
        raise error

    registry.hook(hook)
    with pytest.raises(error):
        HOOKED[operation](registry)
    assert (registry.core.mutating, registry.core.is_reentrant(), registry.core.deferred) == (False, False, {})
    assert registry.engine.ledger.timers == (1 if rebuilt else 7)


@pytest.mark.parametrize("operation", ["schedule_event", "publish", "subscribe"])
def test_an_operation_of_another_thread_waits_and_is_not_deferred(operation: str) -> None:
    """Fault: a call of another thread that finds the engine in a change is deferred, and never runs (G21)."""
    registry = ByHand()
    subscribe(registry, "a")
    schedule(registry, 10)
    other = threading.Thread(
        target={
            "schedule_event": lambda: schedule(registry, 10),
            "publish": lambda: registry.publish("t", "m"),
            "subscribe": lambda: subscribe(registry, "b"),
        }[operation],
        daemon=True,
    )

    def hold() -> None:
        other.start()
        # No event tells that the other thread waits. If this is too short, the test misses the fault.
        threading.Event().wait(0.05)

    registry.core.run_locked(hold)
    other.join(PATIENCE)
    assert not other.is_alive()
    assert registry.core.deferred == {}
    stats = registry.stats()
    assert stats.timers + stats.queued + stats.subscriptions == 3


@pytest.mark.parametrize("kind", ["timer", "fan_out"])
def test_a_reraised_exception_is_freed_without_the_collector(kind: str) -> None:
    """Fault: a frame keeps the exception in a variable, which is a cycle through its traceback (G13)."""
    references: list[weakref.ref[Stop]] = []

    def dispatch(_cid: str, _event: Event) -> None:
        stop = Stop()
        references.append(weakref.ref(stop))
        try:
            raise stop
        finally:
            del stop

    registry = ByHand()
    registry.install_dispatch(dispatch)
    if kind == "timer":
        schedule(registry)
    else:
        subscribe(registry)
        registry.publish("t", "m")
    logging.getLogger("stube").disabled = True
    gc.disable()
    try:
        try:
            registry.driver.deliver(0)
        except Stop:
            pass
        assert references[0]() is None
    finally:
        gc.enable()
        logging.getLogger("stube").disabled = False


def test_a_fan_out_interrupted_at_any_line_delivers_each_target_once() -> None:
    """Fault: after Ctrl-C between two lines of a fan-out a target is left out, or delivered or counted twice (G19).

    Ctrl-C while another exception is being handled may leave a target without a fate.
    """
    code = Deliverer._deliver_fan_out.__code__
    interrupted = 0
    for at in range(1, 100):
        registry = ByHand()
        calls: list[str] = []

        def dispatch(cid: str, _event: Event, registry: ByHand = registry, calls: list[str] = calls) -> None:
            calls.append(cid)
            if cid == "a":
                registry.remove_subscriptions_for_cid("b")
            if cid == "c":
                raise ConversationEnded("over")
            if cid == "d":
                raise ValueError(cid)

        registry.install_dispatch(dispatch)
        subscribe(registry, "a", "b", "c", "d", "e")
        registry.publish("t", "m")
        lines = 0

        def trace(frame: FrameType, kind: str, _: object, at: int = at) -> Any:
            nonlocal lines
            if frame.f_code is not code:
                return None
            if kind == "line":
                lines += 1
                if lines == at:
                    raise Stop
            return trace

        logging.getLogger("stube").disabled = True
        before = sys.gettrace()
        for _ in range(2):  # the second time in the continued fan-out
            lines = 0
            sys.settrace(trace)
            try:
                registry.driver.deliver(0)
            except Stop:
                interrupted += 1
            finally:
                sys.settrace(before)
            registry.core.run_locked(registry.engine.claims.abandon)
        registry.driver.deliver(0)
        logging.getLogger("stube").disabled = False
        assert calls == sorted(set(calls))
        stats = registry.stats()
        assert stats.delivered + stats.failed + stats.cancelled <= stats.accepted == 5
        assert (stats.queued, stats.running) == (0, 0)
        assert registry.engine.claims.fan_out is None
    assert interrupted > 20


# Repr, close, sizes, classes


def test_the_repr_shows_the_pending_figures(registry: ByHand) -> None:
    """Fault: the repr shows wrong figures, or not that the registry is closed."""
    subscribe(registry, "a", "b")
    schedule(registry, 10)
    registry.publish("t", "m")
    assert repr(registry) == "<ByHand: 1 timers, 2 queued>"
    registry.close()
    assert repr(registry) == "<ByHand closed: 0 timers, 0 queued>"


def test_leaving_a_with_block_closes_the_registry(registry: ByHand) -> None:
    """Fault: the block does not close the registry, or does not wait for the running delivery."""
    with registry as entered:
        assert entered is registry
    assert registry.driver.stopped == [5.0]
    assert registry.close(None) is True
    assert registry.close(0.5) is True
    assert registry.driver.stopped == [5.0, None, 0.5]


def test_a_close_frees_discarded_payloads_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: dropped payloads stay alive while a close waits for the last delivery (G13)."""

    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)
    alive: list[bool] = []

    def stop(_driver: HandDriver, _timeout: float | None) -> bool:
        alive.append(reference() is not None)
        return True

    monkeypatch.setattr(HandDriver, "stop", stop)
    registry = ByHand()
    schedule(registry, 10, ("e", payload))
    del payload
    registry.close()
    assert alive == [False]


def test_sizes_count_the_containers_outside_the_engine(registry: ByHand) -> None:
    """Fault: a container is not counted, so that no test sees a leak in it (G13)."""
    found = registry.sizes()
    assert {name: found[name] for name in ("deferred", "waiters", "keepalive")} == {
        "deferred": 0,
        "waiters": 0,
        "keepalive": 0,
    }
    registry.core.waiters.append(None)  # type: ignore[arg-type]
    assert registry.sizes()["waiters"] == 1
    assert set(registry.sizes()) == {*sizes(registry.engine), "deferred", "waiters", "keepalive"}


def test_a_local_registry_promises_six_capabilities() -> None:
    """Fault: a capability has another name, and the suite skips its tests."""
    assert LocalRegistry.capabilities == {
        "common_topic_order", "fair", "one_instant_snapshot", "by_reference", "fork", "sizes"
    }  # fmt: skip


def test_a_live_registry_is_known_until_it_is_collected() -> None:
    """Fault: the list misses a registry, which a forked child does not restart then, or keeps it alive (G13, G25)."""
    registry = ByHand()
    assert registry in live_registries()
    reference = weakref.ref(registry)
    registry.core.dispatch = print
    del registry
    gc.collect()
    assert reference() is None


def test_a_registry_without_a_driver_is_refused_when_its_class_is_created() -> None:
    """Fault: a backend that forgets the hook fails at its first operation, with an AttributeError."""
    with pytest.raises(TypeError) as caught:
        type("Idle", (LocalRegistry,), {})
    assert str(caught.value) == "Idle lacks _new_driver. Define what LocalRegistry declares."


def test_a_driver_that_lacks_a_member_is_refused_when_its_class_is_created() -> None:
    """Fault: a driver without a wake-up is noticed only when a timer is late."""
    members = {name: getattr(HandDriver, name) for name in ("enter", "prepare", "start", "stop", "wait", "call_back")}
    with pytest.raises(TypeError) as caught:
        type("Deaf", (Driver,), members)
    assert str(caught.value) == "Deaf lacks wake, delivers_here. Define what Driver declares."
