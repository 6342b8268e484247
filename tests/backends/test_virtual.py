"""Promises of the virtual backend alone: a clock that the caller moves, deliveries on the caller's stack, a trace."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from stube import Delivery, Event, RegistryClosed, Stats, VirtualTimeError
from stube.testing._harness import HOUR, PATIENCE, Injector, check_ledger, run_script, run_threads, tracing, watchdog
from stube_backends.virtual import VirtualRegistry
from tests.backends.helpers import tick


@pytest.fixture
def make() -> Iterator[Callable[..., VirtualRegistry]]:
    """Make registries that the fixture checks and closes after the test."""
    made: list[VirtualRegistry] = []

    def build(**options: Any) -> VirtualRegistry:
        registry = VirtualRegistry(**options)
        made.append(registry)
        return registry

    yield build
    for registry in made:
        registry._check()
        check_ledger(registry)
        assert registry.close()
        registry._check()
        check_ledger(registry)
        assert not any(registry.sizes().values()), registry.sizes()
    made.clear()


@pytest.fixture
def registry(make: Callable[..., VirtualRegistry]) -> VirtualRegistry:
    return make()


class Log:
    """A dispatch that records each delivery with its instant, and calls the handler of the event's name."""

    def __init__(self, registry: VirtualRegistry) -> None:
        self.registry = registry
        self.seen: list[tuple[float, str, object]] = []
        self.handlers: dict[str, Callable[[Event], object]] = {}
        registry.install_dispatch(self)

    def __call__(self, cid: str, event: Event) -> None:
        self.seen.append((self.registry.now_ms, event.name, event.payload))
        self.registry._check()
        handler = self.handlers.get(event.name)
        if handler is not None:
            handler(event)

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.seen]

    @property
    def instants(self) -> list[float]:
        return [instant for instant, _, _ in self.seen]


@pytest.fixture
def log(registry: VirtualRegistry) -> Log:
    return Log(registry)


def listen(registry: VirtualRegistry, cid: str = "c1", topic: str = "t", event: Any = "said") -> None:
    registry.subscribe(cid=cid, instance_id="main", topic=topic, event=event)


# -- the clock -----------------------------------------------------------------------------------------------


def test_advance_goes_to_each_due_instant(registry: VirtualRegistry, log: Log) -> None:
    """Fault: the clock jumps to the end first, or the timers of a step are delivered in the order of scheduling."""
    for delay in (30, 10, 20.5, 10, 700_000, 0):
        tick(registry, delay, ("tick", delay))
    registry._check()
    registry.advance(25)
    registry._check()
    assert log.seen == [(0, "tick", 0), (10, "tick", 10), (10, "tick", 10), (20.5, "tick", 20.5)]
    assert registry.now_ms == 25
    registry.advance(5)
    assert log.instants[-1] == 30
    registry.advance(699_969.999999)
    assert len(log.seen) == 5
    registry.advance(0.000001)
    assert log.seen[-1] == (700_000, "tick", 700_000)


def test_work_added_inside_a_step_begins_inside_it(registry: VirtualRegistry, log: Log) -> None:
    """Case 21. Fault: timers and messages that a handler adds wait for the next step, or overtake earlier ones."""
    listen(registry)
    log.handlers["a"] = lambda event: (
        tick(registry, 5, "b"),
        tick(registry, 0, "c"),
        registry.publish("t", 1),
    )
    tick(registry, 10, "a")
    tick(registry, 12, "d")
    tick(registry, 10, "e")
    registry.advance(15)
    assert [(at, name) for at, name, _ in log.seen] == [
        (10, "a"), (10, "e"), (10, "c"), (10, "said"), (12, "d"), (15, "b"),
    ]  # fmt: skip
    tick(registry, 1, "a")
    registry.advance(1)
    assert log.names[-3:] == ["a", "c", "said"]
    assert registry.next_due_ms() == 21


def test_a_chain_of_a_thousand_timers_fires_in_one_step(registry: VirtualRegistry, log: Log) -> None:
    """Case 21. Fault: the chain fires once, or at drifting instants."""
    log.handlers["tick"] = lambda event: tick(registry, 1)
    tick(registry, 1)
    registry.advance(1000)
    assert log.instants == [float(n) for n in range(1, 1001)]
    assert registry.sizes()["timers of conversations"] == 1


@pytest.mark.parametrize(("step", "count", "end"), [(100, 10, 1000.0), (0.1, 10_000, 1000.0), (1 / 3, 3, 1.000002)])
def test_steps_add_up_exactly(registry: VirtualRegistry, step: float, count: int, end: float) -> None:
    """Case 22. Fault: the clock is kept in float milliseconds, and 10,000 steps of 0.1 end at 1000.0000000001588.

    A step is rounded up to whole nanoseconds, as a delay is, so the clock always reaches a timer of the same length.
    """
    for _ in range(count):
        handle = tick(registry, step)
        registry.advance(step)
        assert not handle.cancel(), "the timer of the same length was not reached"
    assert registry.now_ms == pytest.approx(end, abs=1e-5)
    if step != 1 / 3:
        assert registry.now_ms == end


def test_steps_may_be_timedeltas(registry: VirtualRegistry, log: Log) -> None:
    """Fault: a `timedelta` is taken as seconds, or loses its microseconds or days."""
    for delay in (1, 86_400_000, 0.001):
        tick(registry, delay)
    registry.advance(timedelta(microseconds=1))
    registry.advance(timedelta(milliseconds=0.999))
    assert log.instants == [0.001, 1]
    registry.advance(timedelta(days=1))
    assert registry.now_ms == 86_400_001
    registry.advance(timedelta(0))
    assert len(log.seen) == 3


def test_the_clock_starts_at_start_ms(make: Callable[..., VirtualRegistry]) -> None:
    """Fault: `start_ms` is ignored, or timers count from 0."""
    registry = make(start_ms=1_700_000_000_000.5)
    log = Log(registry)
    assert registry.now_ms == 1_700_000_000_000.5
    tick(registry, 10)
    assert registry.next_due_ms() == 1_700_000_000_010.5
    registry.advance(10)
    assert log.instants == [1_700_000_000_010.5]
    assert registry.trace[0].at_ms == 1_700_000_000_010.5
    for start in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="start_ms"):
            VirtualRegistry(start_ms=start)


def test_next_due_ms_is_the_earliest_due_instant(registry: VirtualRegistry, log: Log) -> None:
    """Fault: the result is the beginning of a slot of the wheel, a cancelled timer counts, or a ready message does
    not."""
    assert registry.next_due_ms() is None
    handles = [tick(registry, delay) for delay in (500, 400.25, 450, HOUR)]
    assert registry.next_due_ms() == 400.25
    handles[1].cancel()
    assert registry.next_due_ms() == 450
    registry.advance(449)
    assert registry.next_due_ms() == 450
    listen(registry)
    registry.publish("t", 1)
    assert registry.next_due_ms() == 449
    registry.settle()
    assert registry.next_due_ms() == 450
    tick(registry, -5)
    assert registry.next_due_ms() == 449
    registry.reset_state()
    assert registry.next_due_ms() is None
    seen: list[float | None] = []
    log.handlers["look"] = lambda event: seen.append(registry.next_due_ms())
    tick(registry, 1, "look")
    tick(registry, 1, "tick")
    registry.advance(1)
    assert seen == [450]


def test_a_message_is_not_due_any_more_when_its_last_delivery_has_begun(registry: VirtualRegistry) -> None:
    """Fault: a publication that is being delivered counts as ready, because it leaves the order only after that."""
    seen: list[float | None] = []
    registry.install_dispatch(lambda cid, event: seen.append(registry.next_due_ms()))
    for cid in ("c1", "c2"):
        registry.subscribe(cid=cid, instance_id="main", topic="t", event="said")
    registry.publish("t", 1)
    registry.settle()
    tick(registry, 100)
    registry.publish("t", 2)
    registry.settle()
    assert seen == [0, None, 0, 100]


@pytest.mark.parametrize("delay", [10**18, 10**400, 1.7e308, 2.0**53])
def test_timers_beyond_the_range_of_a_float_are_delivered(registry: VirtualRegistry, log: Log, delay: float) -> None:
    """Case 18, G11. Fault: `next_due_ms`, `inspect` or the trace raises an OverflowError; or the far timer affects
    others."""
    tick(registry, delay, "far")
    tick(registry, 10, "near")
    registry.advance(10)
    assert log.names == ["near"]
    assert registry.next_due_ms() == (float("inf") if delay == 10**400 else delay)
    assert registry.inspect("c1")["c1"].timers[0].remaining_ms > 0
    registry.advance(delay)
    assert log.names == ["near", "far"]
    assert registry.trace[-1].name == "far"
    tick(registry, 10, "after")
    registry.advance(10)
    assert log.names == ["near", "far", "after"]
    registry._check()


# -- running until idle, settling, joining -------------------------------------------------------------------


def test_run_until_idle_delivers_and_counts_everything(registry: VirtualRegistry, log: Log) -> None:
    """Fault: it stops at the first instant without deliveries, or does not count messages."""
    listen(registry)
    listen(registry, "c2")
    log.handlers["tick"] = lambda event: registry.publish("t", 1) if registry.now_ms < 100 else None
    tick(registry, 50)
    tick(registry, HOUR)
    assert registry.run_until_idle() == 4
    assert registry.now_ms == HOUR
    assert registry.run_until_idle() == 0


def test_run_until_idle_is_limited(registry: VirtualRegistry, log: Log) -> None:
    """Fault: a timer that re-arms itself causes an endless loop; the error does not name it; or the state is lost."""
    log.handlers["again"] = lambda event: tick(registry, 10, "again", "c7")
    tick(registry, 10, "again", "c7")
    with watchdog(), pytest.raises(VirtualTimeError, match=r"'again'.*'main'.*'c7'"):
        registry.run_until_idle(20)
    registry._check()
    assert len(log.seen) == 20
    assert registry.stats() == Stats(accepted=21, delivered=20, timers=1)
    registry.advance(10)
    assert len(log.seen) == 21
    registry.cancel_timers("c7")
    assert registry.run_until_idle() == 0
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            registry.run_until_idle(limit)
    for wrong in (1.5, True, "3"):
        with pytest.raises(TypeError, match="limit"):
            registry.run_until_idle(wrong)  # type: ignore[arg-type]


def test_exactly_the_limit_is_no_error(registry: VirtualRegistry, log: Log) -> None:
    """Fault: the last permitted delivery raises an error, although nothing is pending after it."""
    for delay in (0, 1, 2, 2):
        tick(registry, delay)
    assert registry.run_until_idle(4) == 4


@pytest.mark.parametrize("cause", ["timers", "messages"])
def test_the_limit_counts_what_is_due_at_one_instant(registry: VirtualRegistry, log: Log, cause: str) -> None:
    """Fault: the limit is checked only between two instants, so that all of ten deliveries at one instant pass a limit
    of five."""
    for number in range(10):
        if cause == "timers":
            tick(registry, 5)
        else:
            listen(registry, f"c{number}")
    if cause == "messages":
        registry.publish("t", 1)
    with pytest.raises(VirtualTimeError):
        registry.run_until_idle(5)
    registry._check()
    assert registry.run_until_idle() + len(log.seen) >= 10
    assert len(log.seen) == 10


def test_settle_delivers_what_is_ready_and_no_more(registry: VirtualRegistry, log: Log) -> None:
    """Fault: `settle` moves the clock, or leaves what a handler adds at this instant."""
    listen(registry)
    log.handlers["said"] = lambda event: tick(registry, 0, "soon") if event.payload == 1 else None
    registry.publish("t", 1)
    registry.publish("t", 2)
    tick(registry, 0.000001, "later")
    assert registry.settle()
    assert log.names == ["said", "said", "soon"]
    assert registry.now_ms == 0
    assert registry.settle(0)


def test_the_timeout_of_join_is_virtual(registry: VirtualRegistry, log: Log) -> None:
    """Fault: `join(3600)` waits for an hour of the wall clock, or moves the clock beyond its timeout or beyond the last
    delivery."""
    tick(registry, HOUR)
    tick(registry, 2 * HOUR)
    with watchdog():
        assert not registry.join(5400)
    assert registry.now_ms == 1.5 * HOUR
    assert log.instants == [HOUR]
    assert registry.join(1800)
    assert registry.now_ms == 2 * HOUR
    assert registry.join(10)
    assert registry.now_ms == 2 * HOUR, "the clock moved although nothing was pending"
    tick(registry, 5)
    assert not registry.join(0)
    assert registry.now_ms == 2 * HOUR
    assert registry.join()
    assert registry.now_ms == 2 * HOUR + 5


def test_join_reports_an_endless_chain(registry: VirtualRegistry) -> None:
    """Fault: `join()` without a timeout never returns if a timer re-arms itself."""

    def rearm(cid: str, event: Event) -> None:
        tick(registry, 1000, "clock")

    registry.install_dispatch(rearm)
    tick(registry, 1000, "clock")
    with watchdog(), pytest.raises(VirtualTimeError, match="'clock'"):
        registry.join()
    registry._check()


# -- the trace -----------------------------------------------------------------------------------------------


def test_the_trace_says_what_was_delivered_when_and_why(registry: VirtualRegistry, log: Log) -> None:
    """Fault: an entry has the cause of the delivery before it, or the trace contains cancelled timers."""
    listen(registry, "c1", "news", ("headline", "spec"))
    listen(registry, "c2", "news", "headline")
    log.handlers["tick"] = lambda event: registry.publish("news", "now")
    tick(registry, 5, ("tick", object()))
    tick(registry, 5, "other", "c2")
    tick(registry, 6, "never").cancel()
    registry.advance(10)
    assert registry.trace == [
        Delivery(5, "c1", "main", "tick", "timer"),
        Delivery(5, "c2", "main", "other", "timer"),
        Delivery(5, "c1", "main", "headline", "topic news"),
        Delivery(5, "c2", "main", "headline", "topic news"),
    ]


def test_the_trace_includes_deliveries_without_a_dispatch(registry: VirtualRegistry) -> None:
    """Fault: deliveries before the first `install_dispatch` are counted, but not traced."""
    tick(registry)
    registry.settle()
    assert registry.stats().delivered == 1
    assert registry.trace == [Delivery(0, "c1", "main", "tick", "timer")]


def test_the_trace_includes_failures(registry: VirtualRegistry) -> None:
    """Fault: a delivery that raised is missing, because it is traced only after it returned."""
    registry.install_dispatch(lambda cid, event: 1 / 0)  # type: ignore[arg-type]
    tick(registry)
    registry.settle()
    assert [delivery.name for delivery in registry.trace] == ["tick"]
    assert registry.stats().failed == 1


def test_the_trace_is_bounded_and_keeps_no_payload(registry: VirtualRegistry, log: Log) -> None:
    """G13. Fault: a long simulation keeps every message that it ever delivered."""

    class Payload:
        pass

    references = []
    listen(registry)
    for _ in range(3):
        payload = Payload()
        references.append(weakref.ref(payload))
        tick(registry, 0, ("tick", payload))
        registry.publish("t", payload)
        del payload
    registry.settle()
    log.seen.clear()
    gc.collect()
    assert len(registry.trace) == 6
    assert all(reference() is None for reference in references)
    registry.install_dispatch(lambda cid, event: None)
    for _ in range(25_000):
        tick(registry, 0, "many")
    registry.settle()
    assert 6 < len(registry.trace) < 25_000
    registry.trace.clear()  # a copy
    assert registry.trace


def test_the_trace_may_be_read_while_another_thread_moves_the_clock(registry: VirtualRegistry) -> None:
    """Fault: reading raises the RuntimeError "deque mutated during iteration"."""
    registry.install_dispatch(lambda cid, event: None)
    for number in range(20_000):
        tick(registry, number / 100)
    registry.advance(100)
    done = threading.Event()

    def move() -> None:
        try:
            for _ in range(100):
                registry.advance(1)
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            for delivery in registry.trace[:1]:
                assert delivery.name == "tick"

    run_threads(move, read)


# -- handlers that never let an instant end ------------------------------------------------------------------


def test_zero_delay_re_arming_is_reported(registry: VirtualRegistry) -> None:
    """Case 21. Fault: an endless loop; an error that names no timer; or a registry that is unusable afterwards."""
    count = 0

    def dispatch(cid: str, event: Event) -> None:
        nonlocal count
        count += 1
        if event.name == "again":
            tick(registry, 0, "again", "c7")

    registry.install_dispatch(dispatch)
    tick(registry, 5, "again", "c7")
    handle = tick(registry, 6, "innocent")
    with watchdog(), pytest.raises(VirtualTimeError, match=r"'again'.*'main'.*'c7'") as caught:
        registry.advance(10)
    assert "5.0 ms" in str(caught.value)
    assert registry.now_ms == 5
    registry._check()
    stats = check_ledger(registry)
    assert (stats.timers, stats.delivered) == (2, count)
    assert registry.cancel_timers("c7") == 1
    registry.advance(5)
    assert registry.now_ms == 10
    assert not handle.cancel()


def test_publishing_to_oneself_without_end_is_reported(registry: VirtualRegistry) -> None:
    """Fault: as above, over a topic; the error does not name the topic."""
    registry.install_dispatch(lambda cid, event: registry.publish("echo", event.payload))  # type: ignore[arg-type]
    listen(registry, "c1", "echo")
    registry.publish("echo", 1)
    with watchdog(), pytest.raises(VirtualTimeError, match="'echo'"):
        registry.settle()
    registry._check()
    assert check_ledger(registry).queued == 1
    assert registry.unsubscribe(cid="c1", instance_id="main") == 1
    assert registry.settle()
    assert check_ledger(registry).cancelled == 1


def test_an_alternating_chain_is_reported(registry: VirtualRegistry) -> None:
    """Fault: only timers, or only messages, are counted, and a chain that alternates never ends."""

    def dispatch(cid: str, event: Event) -> None:
        if event.name == "said":
            tick(registry)
        else:
            registry.publish("t", 1)

    registry.install_dispatch(dispatch)
    listen(registry)
    tick(registry)
    with watchdog(), pytest.raises(VirtualTimeError):
        registry.run_until_idle()
    registry._check()
    check_ledger(registry)


def test_two_endless_chains_at_one_instant_are_reported(registry: VirtualRegistry) -> None:
    """Fault: two timers that re-arm themselves, and cancel others, are not recognized as an endless chain."""
    handles: list[Any] = []

    def dispatch(cid: str, event: Event) -> None:
        handles.append(tick(registry))
        tick(registry).cancel()

    registry.install_dispatch(dispatch)
    tick(registry)
    tick(registry)
    with watchdog(), pytest.raises(VirtualTimeError):
        registry.advance(1)
    registry._check()
    check_ledger(registry)


def test_a_long_chain_that_ends_is_no_fault(registry: VirtualRegistry) -> None:
    """Fault: rounds are counted over all instants, so that a long simulation raises an error in the end."""
    count = 0

    def dispatch(cid: str, event: Event) -> None:
        nonlocal count
        count += 1
        tick(registry, 0 if count % 100 else 1)

    registry.install_dispatch(dispatch)
    tick(registry)
    registry.advance(200)
    assert count > 20_000


def test_wide_fan_out_is_no_chain(registry: VirtualRegistry) -> None:
    """Fault: the bound counts deliveries instead of rounds, and 100,000 subscribers, or 20,000 timers of one instant,
    are taken for an endless chain."""
    count = 0

    def dispatch(cid: str, event: Event) -> None:
        nonlocal count
        count += 1

    registry.install_dispatch(dispatch)
    for number in range(100_000):
        listen(registry, f"c{number}")
    assert registry.publish("t", 1) == 100_000
    registry.settle()
    assert count == 100_000
    registry.reset_state()
    for number in range(20_000):
        tick(registry, 0, cid=f"c{number % 7}")
    registry.settle()
    assert count == 120_000
    # and 20,000 messages, each caused by one of 20,000 timers of one instant
    listen(registry)
    registry.install_dispatch(lambda cid, event: registry.publish("t", 1) if event.name == "tick" else None)  # type: ignore[arg-type]
    for _ in range(20_000):
        tick(registry, 5)
    registry.advance(5)
    assert registry.stats().delivered == 160_000


# -- moving the clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["advance", "run_until_idle", "settle", "join"])
def test_the_clock_is_not_moved_from_inside_a_delivery(registry: VirtualRegistry, log: Log, what: str) -> None:
    """Fault: deliveries overtake the one that runs, which breaks G1; or the refusal disturbs the outer call."""
    errors: list[Exception] = []

    def move(event: Event) -> None:
        try:
            registry.advance(1) if what == "advance" else getattr(registry, what)()
        except (VirtualTimeError, RuntimeError) as exc:
            errors.append(exc)

    log.handlers["move"] = move
    tick(registry, 1, "move")
    tick(registry, 1, "after")
    registry.advance(2)
    assert log.names == ["move", "after"]
    assert len(errors) == 1
    assert isinstance(errors[0], VirtualTimeError if what in ("advance", "run_until_idle") else RuntimeError)
    assert what in str(errors[0])
    assert registry.now_ms == 2


def test_the_clock_is_not_moved_by_two_threads(registry: VirtualRegistry) -> None:
    """Fault: two threads deliver at the same time.

    `settle`, `join` and `close` wait for the other thread instead, within their timeout.
    """
    entered, go_on = threading.Event(), threading.Event()

    def dispatch(cid: str, event: Event) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    registry.install_dispatch(dispatch)
    tick(registry, 1)
    mover = threading.Thread(target=registry.advance, args=(1,), daemon=True)
    mover.start()
    assert entered.wait(PATIENCE)
    for move in (lambda: registry.advance(1), registry.run_until_idle):
        with pytest.raises(VirtualTimeError, match="another thread"):
            move()
    assert not registry.settle(0.01)
    assert not registry.join(0.01)
    assert not registry.close(0.01)
    with pytest.raises(RegistryClosed):
        tick(registry)
    go_on.set()
    assert registry.settle(PATIENCE)
    mover.join(PATIENCE)
    assert registry.now_ms == 2 or registry.now_ms == 1
    assert check_ledger(registry).delivered == 1


def test_other_threads_may_operate_while_the_clock_moves(registry: VirtualRegistry) -> None:
    """Fault: two threads change the engine at the same time, so that an accepted delivery has no fate, or two."""
    registry.install_dispatch(lambda cid, event: None)
    done = threading.Event()

    def work() -> None:
        for index in range(1500):
            cid = f"c{index % 5}"
            tick(registry, index % 3, cid=cid).cancel() if index % 4 == 0 else tick(registry, index % 3, cid=cid)
            listen(registry, cid)
            registry.publish("t", index)
            registry.unsubscribe(cid=cid, instance_id="main")
            if index % 10 == 0:
                registry.cancel_timers(cid)

    def move() -> None:
        while not done.is_set():
            registry.advance(0.5)

    mover = threading.Thread(target=move, daemon=True)
    mover.start()
    try:
        run_threads(work, work)
    finally:
        done.set()
        mover.join(PATIENCE)
    registry._check()
    registry.run_until_idle()
    assert check_ledger(registry).timers == 0


@pytest.mark.parametrize("step", [-1, -0.001, -(10**400), timedelta(microseconds=-1), timedelta(days=-1)])
def test_a_negative_step_changes_nothing(registry: VirtualRegistry, log: Log, step: Any) -> None:
    """Fault: the clock goes back, or ready timers are delivered before the step is refused."""
    tick(registry, 0)
    with pytest.raises(VirtualTimeError, match="back"):
        registry.advance(step)
    assert (log.seen, registry.now_ms) == ([], 0)


@pytest.mark.parametrize(
    ("step", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), (float("-inf"), ValueError)]
    + [(step, TypeError) for step in ("1", None, True, [1])],
)
def test_an_invalid_step_changes_nothing(
    registry: VirtualRegistry, log: Log, step: Any, error: type[Exception]
) -> None:
    """Fault: an invalid step is taken for 0, or the error does not say what to pass."""
    tick(registry, 0)
    with pytest.raises(error, match="step"):
        registry.advance(step)
    assert (log.seen, registry.now_ms) == ([], 0)


# -- faults --------------------------------------------------------------------------------------------------


def test_a_keyboard_interrupt_in_a_timer_reaches_the_caller(make: Callable[..., VirtualRegistry]) -> None:
    """Case 23b, G19. Fault: Ctrl-C is swallowed; or timers due after it are lost, or delivered twice."""
    failures: list[str] = []
    registry = make(on_error=lambda cid, event, exc: failures.append(event.name))
    log = Log(registry)

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt("ctrl-c")

    log.handlers["stop"] = interrupt
    for name in ("a", "stop", "b"):
        tick(registry, 5, name)
    tick(registry, 7, "c")
    with pytest.raises(KeyboardInterrupt, match="ctrl-c"):
        registry.advance(10)
    registry._check()
    assert log.names == ["a", "stop"]
    assert registry.now_ms == 5
    assert registry.stats() == Stats(accepted=4, delivered=1, failed=1, timers=2)
    assert failures == ["stop"]
    assert registry.next_due_ms() == 5
    registry.advance(0)
    assert log.names == ["a", "stop", "b"]
    registry.advance(5)
    assert log.instants == [5, 5, 5, 7]


@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize("go_on", ["advance", "settle", "join", "run_until_idle"])
def test_a_keyboard_interrupt_in_a_fan_out_loses_no_target(
    make: Callable[..., VirtualRegistry], position: int, go_on: str
) -> None:
    """G19. Fault: the remaining targets are lost, or counted as delivered, or get the message twice. The first and the
    last target are tried, too."""
    registry = make()
    names: list[str] = []

    def dispatch(cid: str, event: Event) -> None:
        names.append(cid)
        if cid == f"c{position}" and event.payload == "first":
            raise KeyboardInterrupt

    registry.install_dispatch(dispatch)
    for number in range(5):
        listen(registry, f"c{number}")
    registry.publish("t", "first")
    registry.publish("t", "second")
    tick(registry, 0, cid="timer")
    with pytest.raises(KeyboardInterrupt):
        registry.advance(0)
    registry._check()
    assert names == [f"c{number}" for number in range(position + 1)]
    stats = check_ledger(registry)
    assert (stats.delivered, stats.failed, stats.queued, stats.timers) == (position, 1, 9 - position, 1)
    assert registry.inspect().keys() >= {f"c{number}" for number in range(5)}
    assert [info.running for info in registry.inspect().values()] == [0] * 6
    if position < 4:
        assert registry.unsubscribe(cid="c4", instance_id="main") == 1  # G5 holds for the remaining targets, too
    registry.advance(0) if go_on == "advance" else getattr(registry, go_on)()
    left = 4 if position < 4 else 5
    everyone = [f"c{number}" for number in range(left)]
    assert names == (everyone if position < 4 else [*everyone]) + everyone + ["timer"]
    registry._check()
    stats = check_ledger(registry)
    assert (stats.failed, stats.cancelled, stats.queued) == (1, 2 if position < 4 else 0, 0)
    assert stats.delivered == len(names) - 1


@pytest.mark.parametrize("clean_up", ["reset_state", "close"])
def test_an_interrupted_fan_out_can_be_dropped(
    registry: VirtualRegistry, clean_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G18. Fault: after the reset an interrupted message is delivered further, or its object stays alive."""

    class Message:
        pass

    def dispatch(cid: str, event: Event) -> None:
        names.append(cid)
        raise KeyboardInterrupt

    # Pytest's log handler would keep the traceback.
    monkeypatch.setattr(logging.getLogger("stube"), "disabled", True)
    names: list[str] = []
    registry.install_dispatch(dispatch)
    for number in range(5):
        listen(registry, f"c{number}")
    message = Message()
    reference = weakref.ref(message)
    registry.publish("t", message)
    del message
    with pytest.raises(KeyboardInterrupt):
        registry.settle()
    getattr(registry, clean_up)()
    gc.collect()
    assert reference() is None
    registry._check()
    assert registry.stats() == Stats(accepted=5, failed=1, dropped=4)
    registry.settle()
    assert names == ["c0"]


@pytest.mark.parametrize("where", ["on_error", "log"])
def test_a_keyboard_interrupt_in_on_error_or_the_log_is_raised(
    make: Callable[..., VirtualRegistry], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G19. Fault: Ctrl-C while `on_error` or the log runs is swallowed, or counts the delivery twice."""

    class Interrupting(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    def on_error(cid: str, event: Event, exc: BaseException) -> None:
        if where == "on_error":
            raise KeyboardInterrupt

    if where == "log":
        logger = logging.getLogger("stube")
        monkeypatch.setattr(logger, "handlers", [Interrupting()])
        monkeypatch.setattr(logger, "propagate", False)
    registry = make(on_error=on_error)
    registry.install_dispatch(lambda cid, event: 1 / 0)  # type: ignore[arg-type]
    listen(registry)
    listen(registry, "c2")
    tick(registry)
    registry.publish("t", 1)
    for failed in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            registry.settle()
        registry._check()
        assert check_ledger(registry).failed == failed
    assert registry.settle()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, StopIteration])
def test_other_exceptions_of_a_handler_are_only_counted(
    registry: VirtualRegistry, log: Log, kind: type[BaseException]
) -> None:
    """G19. Fault: `sys.exit` in one handler ends the whole simulation."""

    def fail(event: Event) -> None:
        raise kind

    log.handlers["fail"] = fail
    listen(registry, "c1", "t", "fail")
    listen(registry, "c2", "t", "said")
    tick(registry, 1, "fail")
    tick(registry, 1, "tick")
    registry.publish("t", 1)
    registry.advance(1)
    assert log.names == ["fail", "said", "fail", "tick"]
    assert registry.stats() == Stats(accepted=4, delivered=2, failed=2, subscriptions=2)


def test_a_close_inside_a_delivery_drops_the_rest(registry: VirtualRegistry, log: Log) -> None:
    """G24. Fault: a closed registry delivers the timers behind the close, or close waits for its own caller."""
    log.handlers["stop"] = lambda event: answers.append(registry.close(PATIENCE))
    answers: list[bool] = []
    for name in ("stop", "never", "never"):
        tick(registry, 1, name)
    listen(registry)
    registry.advance(1)
    assert (answers, log.names) == ([False], ["stop"])
    assert registry.now_ms == 1
    assert registry.stats() == Stats(accepted=3, delivered=1, dropped=2)
    registry.advance(10)
    assert registry.run_until_idle() == 0
    assert registry.settle()
    assert registry.join()


def test_a_reset_inside_a_fan_out_drops_the_rest(registry: VirtualRegistry, log: Log) -> None:
    """G18. Fault: the fan-out continues with targets that the reset dropped, or they are counted twice."""
    log.handlers["said"] = lambda event: registry.reset_state() if len(log.seen) == 3 else None
    for number in range(10):
        listen(registry, f"c{number}")
    registry.publish("t", 1)
    registry.publish("t", 2)
    tick(registry, 5)
    registry.advance(10)
    assert log.names == ["said"] * 3
    assert registry.stats() == Stats(accepted=21, delivered=3, dropped=18)


# -- determinism ---------------------------------------------------------------------------------------------


def simulate(seed: int, make: Callable[..., VirtualRegistry]) -> tuple[list[Delivery], Stats]:
    """Run a random program whose handlers call the registry, for some seconds. Return the trace and the ledger."""
    registry = make()
    choice = random.Random(seed)

    def act() -> None:
        cid, topic = f"c{choice.randrange(6)}", f"t{choice.randrange(3)}"
        match choice.randrange(12):
            case 0 | 1 | 2:
                tick(registry, choice.choice((0, 0.1, 1, 7, 150, 1000)), ("tick", choice.random()), cid)
            case 3:
                handles.append(tick(registry, choice.choice((1, 50, 500)), "handled", cid))
            case 4 if handles:
                handles.pop(choice.randrange(len(handles))).cancel()
            case 5 | 6:
                listen(registry, cid, topic, choice.choice(("said", "heard")))
            case 7 | 8 if registry.stats().queued + registry.stats().timers < 200:
                registry.publish(topic, choice.random())
            case 9:
                registry.cancel_timers(cid)
            case 10:
                registry.unsubscribe(cid=cid, instance_id="main", topic=choice.choice((None, topic)))
            case 11:
                if choice.random() < 0.02:
                    registry.reset_state()

    def dispatch(cid: str, event: Event) -> None:
        if choice.random() < 0.45:
            act()
        if choice.random() < 0.02:
            raise ValueError

    handles: list[Any] = []
    registry.install_dispatch(dispatch)
    for _ in range(100):
        for _ in range(5):
            act()
        registry._check()
        registry.advance(choice.choice((0, 1, 100, 333.3)))
        registry._check()
    return registry.trace, check_ledger(registry)


@pytest.mark.parametrize("seed", range(12))
def test_two_runs_of_one_program_are_equal(
    make: Callable[..., VirtualRegistry], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: an order depends on hashes, addresses, threads or the wall clock.

    The test also checks that different programs have different traces; otherwise it would prove nothing.
    """
    caplog.set_level("CRITICAL", "stube")
    first = simulate(seed, make)
    garbage = [object() for _ in range(1000)]  # so that objects of the second run have other addresses
    assert simulate(seed, make) == first
    del garbage
    trace, stats = first
    assert [delivery.at_ms for delivery in trace] == sorted(delivery.at_ms for delivery in trace)
    assert stats.delivered + stats.failed == len(trace) > 100
    assert simulate(seed + 1000, make)[0] != trace


def test_the_virtual_clock_needs_no_thread_and_no_waiting(registry: VirtualRegistry, log: Log) -> None:
    """Fault: the virtual backend starts a thread, or waits in real time."""
    before = set(threading.enumerate())
    for number in range(100):
        tick(registry, number * HOUR)
    with watchdog(10):
        registry.run_until_idle()
    assert set(threading.enumerate()) == before
    assert len(log.seen) == 100
    assert registry.now_ms == 99 * HOUR


def test_the_end_of_a_program_leaves_the_registry_to_its_daemon_threads() -> None:
    """G24. Fault: the exit hook closes the registry, and a daemon thread that uses it writes an error on stderr; or
    the hook waits for a thread that moves the clock."""
    printed = run_script(
        "virtual",
        {},
        """
registry, entered, used = make(), threading.Event(), threading.Event()
registry.install_dispatch(lambda cid, event: (entered.set(), threading.Event().wait(60))[0])
def use():
    while True:
        registry.schedule_event(cid="c", instance_id="i", delay_ms=1, event="tick").cancel()
        used.set()
registry.schedule_event(cid="c", instance_id="i", delay_ms=0, event="tick")
threading.Thread(target=registry.settle, daemon=True).start()
threading.Thread(target=use, daemon=True).start()
assert entered.wait(10)
import atexit
atexit._run_exitfuncs()
print("closed" in repr(registry))
used.clear()
assert used.wait(10)
""",
    )
    assert printed == "False\n"


def test_an_interrupt_in_the_last_delivery_leaves_the_registry_empty(
    registry: VirtualRegistry,
) -> None:
    """Fault: the registry is kept alive as if work were pending, because the interrupt prevents the last look."""

    def interrupt(cid: str, event: Event) -> None:
        raise KeyboardInterrupt

    registry.install_dispatch(interrupt)
    tick(registry, 0, "last")
    with pytest.raises(KeyboardInterrupt):
        registry.settle()
    assert not any(registry.sizes().values()), registry.sizes()


@pytest.mark.parametrize("operation", ["schedule", "cancel", "cancel_timers", "advance", "reset"])
def test_next_due_ms_may_be_read_at_every_line_of_an_operation(operation: str) -> None:
    """Fault: a finalizer reads `next_due_ms` while the wheel is being changed, and gets an error, or removes tombstones
    that the operation is about to remove (G20)."""

    def attempt(at: int) -> bool:
        registry = VirtualRegistry()
        handles = [
            registry.schedule_event(cid=f"c{number % 2}", instance_id="i", delay_ms=delay, event="tick")
            for number, delay in enumerate((1, 1, 2, 300, 5_000, 5_001, 9_000))
        ]
        registry.advance(0.5)
        handles[2].cancel()
        work: dict[str, Callable[[], object]] = {
            "schedule": lambda: registry.schedule_event(cid="c9", instance_id="i", delay_ms=700, event="tick"),
            "cancel": handles[0].cancel,
            "cancel_timers": lambda: registry.cancel_timers("c0"),
            "advance": lambda: registry.advance(6_000),
            "reset": registry.reset_state,
        }
        found: list[float | None] = []
        injector = Injector(at, lambda: found.append(registry.next_due_ms()))
        with tracing(injector):
            work[operation]()
        assert injector.fired == "" or len(found) == 1
        registry._check()
        registry.close()
        return bool(injector.fired)

    lines = 0
    while attempt(lines):
        lines += 1
    assert lines > 10
