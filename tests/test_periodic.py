"""`Conversation.every`: ticks without drift, which one handle cancels."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from typing_extensions import override

import stube
from stube import NO_PAYLOAD, Conversation, Conversations, Event, PeriodicTimer
from stube.testing._harness import PATIENCE, Injector, RegistryProxy
from stube.testing._harness.recorder import Gate

MS = 1_000_000  # nanoseconds


class Ticking:
    """A virtual registry, one conversation of it, and what is delivered."""

    def __init__(self, registry: Any = None) -> None:
        self.registry = stube.create_registry("virtual") if registry is None else registry
        self.conversation = Conversations(self.registry).open("c1")
        self.seen: list[tuple[float, Event]] = []
        self.on_tick: Callable[[Event], object] = lambda event: None
        self.registry.install_dispatch(self.dispatch)

    def dispatch(self, cid: str, event: Event) -> None:
        assert cid == "c1"
        self.seen.append((self.registry.now_ms, event))
        self.on_tick(event)

    @property
    def instants(self) -> list[float]:
        return [at for at, _ in self.seen]


@pytest.mark.parametrize(
    ("event", "payload"),
    [("tick", NO_PAYLOAD), (("tick",), NO_PAYLOAD), (["tick", None], None), (("tick", 1, "b"), (1, "b"))],
)
@pytest.mark.parametrize("period", [100, 100.0, timedelta(milliseconds=100)])
def test_ticks_are_exact_and_carry_what_the_caller_gave(event: Any, payload: object, period: Any) -> None:
    """Fault: a tick shows the timer in place of the payload, or is early, late or left out."""
    ticking = Ticking()
    ticking.registry.advance(7)
    ticking.conversation.every(event, period, instance_id="clock")
    ticking.registry.advance(350)
    assert ticking.instants == [107, 207, 307]
    assert [event for _, event in ticking.seen] == [Event("clock", "tick", payload)] * 3
    assert [event.due for _, event in ticking.seen] == [107 * MS, 207 * MS, 307 * MS]


def test_a_period_that_is_no_whole_number_of_milliseconds_does_not_add_up_its_rounding() -> None:
    """Fault: each tick is counted from the one before it, so that what was rounded up makes a drift."""
    ticking = Ticking()
    ticking.conversation.every("tick", 0.1)
    ticking.conversation.every("third", 1000 / 3, instance_id="other")
    ticking.registry.advance(1000.001)
    ticks = [event.due for _, event in ticking.seen if event.name == "tick"]
    assert ticks == [number * 100_000 for number in range(1, 10_001)]
    thirds = [event.due for _, event in ticking.seen if event.name == "third"]
    assert thirds == [333_333_334, 666_666_668, 1_000_000_002]  # whole periods of so many nanoseconds


def test_many_that_are_due_together_all_begin_again() -> None:
    """Fault: a tick that is delivered in a batch with others is the last one."""
    registry = stube.create_registry("virtual")
    conversations = Conversations(registry)
    seen: list[tuple[float, str]] = []
    registry.install_dispatch(lambda cid, event: seen.append((registry.now_ms, cid)))
    for number in range(100):
        conversations.open(f"c{number}").every("tick", 10)
    registry.advance(30)
    assert seen == [(at, f"c{number}") for at in (10, 20, 30) for number in range(100)]
    assert registry.stats().timers == 100


class Late(RegistryProxy):
    """A virtual registry whose present instant is later than that of its deliveries, as on a busy machine."""

    late_ms = 0

    @property
    @override
    def now_ns(self) -> int:
        return self.registry.now_ns + self.late_ms * MS


@pytest.mark.parametrize(
    ("missed", "dues"), [("skip", [100, 400, 500, 600]), ("make_up", [100, 200, 300, 400, 500, 600])]
)
def test_missed_ticks_are_skipped_or_made_up(missed: Any, dues: list[int]) -> None:
    """Fault: what was missed is lost although it must be made up, or comes all at once although it must not; or a tick
    that is late moves the ones after it."""
    registry = Late(stube.create_registry("virtual"))
    ticking = Ticking(registry)
    ticking.conversation.every("tick", 100, missed=missed)
    registry.late_ms = 220
    registry.advance(100)  # the tick of 100 begins at 320
    registry.advance(80)  # the present instant is 400
    registry.late_ms = 0
    registry.advance(420)
    assert [event.due for _, event in ticking.seen] == [due * MS for due in dues]


@pytest.mark.parametrize("way", ["cancel", "end", "cancel_timers", "instance", "replace", "reset_state"])
@pytest.mark.parametrize("inside", [False, True], ids=["", "in-its-handler"])
def test_everything_that_cancels_timers_ends_the_ticks(way: str, inside: bool) -> None:
    """Fault: a tick comes after the cancel, because the handle, the conversation or the instance forgot the next
    one."""
    ticking = Ticking()
    conversation, registry = ticking.conversation, ticking.registry
    clock = conversation.every("tick", 100)
    results: list[object] = []

    def stop(event: Event | None = None) -> None:
        if way == "cancel":
            results.append(clock.cancel())
        elif way == "end":
            conversation.end()
        elif way == "replace":
            conversation.schedule("idle", 1000, replace=True)
        elif way == "reset_state":
            registry.reset_state()
        else:
            results.append(conversation.cancel_timers(instance_id="main" if way == "instance" else None))

    if inside:
        ticking.on_tick = stop
        registry.advance(100)
    else:
        registry.advance(50)
        stop()
    ticking.on_tick = lambda event: None
    registry.advance(500)
    assert [event.name for _, event in ticking.seen] == ["tick"] * inside
    assert results == ([] if way in ("end", "replace", "reset_state") else [1])
    if way != "reset_state":
        assert clock.cancel() is False
        assert "over" in repr(clock)
    assert registry.stats().timers == (way == "replace")
    assert not conversation._periodic or way == "reset_state"


def test_other_instances_and_other_timers_go_on() -> None:
    """Fault: cancelling one of several periodic timers ends another one."""
    ticking = Ticking()
    clocks = [ticking.conversation.every(name, 100, instance_id=name[0]) for name in ("a1", "a2", "b1")]
    ticking.registry.advance(100)
    assert clocks[0].cancel()
    ticking.registry.advance(100)
    assert ticking.conversation.cancel_timers(instance_id="a") == 1
    ticking.registry.advance(100)
    assert [event.name for _, event in ticking.seen] == ["a1", "a2", "b1", "a2", "b1", "b1"]
    assert (clocks[2].instance_id, clocks[2].cancel(), clocks[2].cancel()) == ("b", True, False)
    assert ticking.registry.stats().timers == 0


def test_a_handler_that_fails_ends_nothing_and_is_reported_with_the_event_that_it_got() -> None:
    """Fault: the next tick is scheduled after the handler; or `on_error` sees the timer in place of the payload."""
    told: list[Event] = []
    registry = stube.create_registry("virtual", on_error=lambda cid, event, exc: told.append(event))
    ticking = Ticking(registry)
    ticking.conversation.every(("tick", 7), 100)

    def fail(event: Event) -> None:
        raise LookupError("a handler fails")

    ticking.on_tick = fail
    registry.advance(300)
    assert told == [Event("main", "tick", 7)] * 3
    assert [event.due for event in told] == [100 * MS, 200 * MS, 300 * MS]


class Refusing(RegistryProxy):
    """Refuses timers with an error, once it has one."""

    error: Exception | None = None

    @override
    def schedule_event(self, **arguments: Any) -> stube.TimerHandle:
        if self.error is not None:
            raise self.error
        return super().schedule_event(**arguments)


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (stube.RegistryFull("it is full"), ["it is full"]),
        (OSError("it is remote"), ["it is remote"]),
        (stube.RegistryClosed("it is closed"), []),
    ],
)
def test_a_registry_that_takes_no_further_tick_ends_the_timer(
    error: Exception, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: the tick that is being delivered is lost, or nobody learns why there are no others."""
    registry = Refusing(stube.create_registry("virtual"))
    ticking = Ticking(registry)
    clock = ticking.conversation.every("tick", 100)
    registry.error = error
    with caplog.at_level(logging.ERROR, logger="stube"):
        registry.advance(300)
    assert ticking.instants == [100]
    lines = [f"<PeriodicTimer 'tick' every 100 ms, over> of conversation 'c1' ends: {why}" for why in logged]
    assert [record.getMessage() for record in caplog.records] == lines
    assert (clock.cancel(), ticking.conversation._periodic, registry.stats().failed) == (False, set(), 0)
    with pytest.raises(type(error)):
        ticking.conversation.every("tick", 100)
    assert not ticking.conversation._periodic


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"period": 0}, ValueError, "period must be greater than 0, not 0. "),
        ({"period": -5}, ValueError, "period must be greater than 0, not -5. "),
        ({"period": timedelta(0)}, ValueError, "period must be greater than 0, not 0.0. "),
        ({"period": float("nan")}, ValueError, "period must be finite, not nan. "),
        ({"period": True}, TypeError, "period must be an int or a float, not True. "),
        ({"period": "1"}, TypeError, "period must be an int or a float, not '1'. "),
        ({"event": ""}, ValueError, "event must not be empty"),
        ({"event": 7}, TypeError, "event must be a name"),
        ({"instance_id": ""}, ValueError, "instance_id must not be empty"),
        ({"instance_id": None}, TypeError, "instance_id must be a str"),
        ({"missed": "later"}, ValueError, "missed must be 'skip' or 'make_up', not 'later'. "),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_has_changed(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Fault: the mistake shows at the first tick, or a timer stays."""
    ticking = Ticking()
    given = {"event": "tick", "period": 100, **arguments}
    with pytest.raises(error) as raised:
        ticking.conversation.every(**given)
    assert str(raised.value).startswith(words)
    assert ticking.registry.inspect() == {}
    ticking.conversation.end()
    with pytest.raises(stube.ConversationEnded):
        ticking.conversation.every("tick", 100)
    assert ticking.registry.inspect() == {}


def test_a_registry_that_begins_no_periodic_timers_is_refused() -> None:
    """Fault: the host gets one tick, whose payload is the timer, and no other."""

    class Twelve:
        now_ns = 0

        @override
        def __repr__(self) -> str:
            return "Twelve()"

    with pytest.raises(TypeError) as raised:
        Conversations(Twelve()).open("c1").every("tick", 100)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "every needs a registry that begins periodic timers, as those that ship do; Twelve() does not. "
        "Let the handler schedule its next event, with schedule(..., since=event)."
    )


# -- real clocks and threads -----------------------------------------------------------------------------------


def check_grid(dues: list[int], began: range, period: int) -> None:
    """Assert that ticks are one period apart and that the first one is a period after the call of `every`."""
    assert began.start <= dues[0] - period < began.stop
    steps = [later - earlier for earlier, later in pairwise(dues)]
    assert all(step > 0 and step % period == 0 for step in steps), steps


@pytest.mark.parametrize("spec", ["memory", "sharded"])
def test_ticks_on_a_thread_keep_to_their_grid(spec: str) -> None:
    """Fault: the delivery thread does not schedule the next tick, or counts it from the present instant."""
    backend: Any = stube.create_registry(spec)
    with backend as registry:
        dues: list[int] = []
        enough = threading.Event()

        def dispatch(cid: str, event: Event) -> None:
            assert event.due is not None
            assert event.due <= registry.now_ns
            dues.append(event.due)
            if len(dues) == 20:
                enough.set()

        registry.install_dispatch(dispatch)
        conversation = Conversations(registry).open("c1")
        earliest = registry.now_ns
        clock = conversation.every("tick", 3)
        latest = registry.now_ns
        assert enough.wait(PATIENCE)
        assert clock.cancel()
        registry.settle()
        assert registry.stats().timers == 0
        count = len(dues)
        check_grid(dues, range(earliest, latest + 1), 3 * MS)
        registry.join(PATIENCE)
        assert len(dues) == count


@pytest.mark.parametrize("kind", ["function", "coroutine", "awaitable"])
@pytest.mark.parametrize("spec", ["asyncio", "virtual"])
def test_ticks_on_a_loop_keep_to_their_grid(spec: str, kind: str) -> None:
    """Fault: one of the ways to deliver on a loop hands out the timer in place of the event, or ends the ticks."""

    async def main() -> None:
        registry: Any = stube.create_registry(spec)
        dues: list[int] = []
        enough = asyncio.Event()

        def note(cid: str, event: Event) -> None:
            assert event == Event("main", "tick", 7)
            assert event.due is not None
            dues.append(event.due)
            if len(dues) == 5:
                enough.set()

        async def coroutine(cid: str, event: Event) -> None:
            note(cid, event)

        dispatch = {"function": note, "coroutine": coroutine, "awaitable": lambda *each: coroutine(*each)}[kind]
        if spec == "virtual" and kind == "awaitable":
            dispatch = coroutine
        registry.install_dispatch(dispatch)
        earliest = registry.now_ns
        clock = Conversations(registry).open("c1").every(("tick", 7), 3)
        latest = registry.now_ns
        if spec == "virtual":
            await registry.advance_async(15)
        await asyncio.wait_for(enough.wait(), PATIENCE)
        assert clock.cancel()
        await registry.settled()
        check_grid(dues, range(earliest, latest + 1), 3 * MS)
        assert registry.stats().timers == 0
        assert await registry.aclose()

    asyncio.run(main())


class Slow(RegistryProxy):
    """Takes its time to schedule, once it has a gate."""

    gate: Gate | None = None

    @override
    def schedule_event(self, **arguments: Any) -> stube.TimerHandle:
        if self.gate is not None:
            self.gate.pass_through()
        return super().schedule_event(**arguments)


@pytest.mark.parametrize("way", ["cancel", "end", "cancel_timers", "replace"])
def test_a_cancel_that_comes_between_a_tick_and_the_next_one_is_final(way: str) -> None:
    """Fault: the delivery thread schedules another tick after `cancel_timers` has found none to cancel; or both wait
    for each other."""
    with stube.create_registry("memory") as inner:
        registry: Any = Slow(inner)
        seen: list[Event] = []
        registry.install_dispatch(lambda cid, event: seen.append(event))
        conversation = Conversations(registry).open("c1")
        clock = conversation.every("tick", 1)
        gate = registry.gate = Gate("next tick")
        gate.wait_entered()
        registry.gate = None
        if way == "replace":
            conversation.schedule("idle", 3_600_000, replace=True)
        elif way == "cancel_timers":
            assert conversation.cancel_timers() == 0
        elif way == "end":
            conversation.end()
        else:
            assert clock.cancel()
        gate.release()
        assert registry.settle()
        count = len(seen)
        assert (clock.cancel(), registry.stats().timers) == (False, way == "replace")
        assert registry.settle()
        assert len(seen) == count


def test_a_cancel_within_an_operation_of_the_registry_waits_for_no_tick() -> None:
    """Fault: a finalizer that runs while the registry is locked waits for the lock of the conversation, whose owner,
    the thread with the tick, waits for the registry (G20)."""
    inner: Any = stube.create_registry("memory")
    with inner:
        registry: Any = Slow(inner)
        clock = Conversations(registry).open("c1").every("tick", 1)
        gate = registry.gate = Gate("next tick")
        gate.wait_entered()
        results: list[bool] = []

        def finalize() -> None:
            gate.release()
            results.append(clock.cancel())

        locked = threading.Thread(target=inner._driver.core.run_locked, args=(finalize,), daemon=True)
        locked.start()
        locked.join(PATIENCE)
        assert results == [True]
        assert inner.settle()
        assert inner.stats().timers == 0


def test_the_handle_may_be_the_payload_of_another_event() -> None:
    """Fault: whatever carries the handle is taken for a tick: its event is lost, and the ticks come twice."""
    ticking = Ticking()
    clock = ticking.conversation.every("tick", 100)
    ticking.conversation.schedule(("stop", clock), 150, instance_id="other")
    ticking.conversation.subscribe("t", "said", instance_id="other")
    ticking.registry.advance(150)
    ticking.registry.publish("t", clock)
    ticking.registry.settle()
    assert ticking.seen[1:] == [(150, Event("other", "stop", clock)), (150, Event("other", "said", clock))]
    assert ticking.registry.stats().timers == 1


@pytest.mark.parametrize("period", [10**400, 1.7e308, 10**309 + 1])
@pytest.mark.parametrize("spec", ["memory", "virtual"])
def test_a_period_may_be_as_long_as_a_delay(spec: str, period: float) -> None:
    """Fault: the first tick of a period that no float holds is refused with an error about floats."""
    backend: Any = stube.create_registry(spec)
    with backend as registry:
        clock = Conversations(registry).open("c1").every("tick", period)
        assert "every" in repr(clock)
        assert clock.cancel()


def test_many_of_one_conversation_are_cancelled_at_the_cost_of_each() -> None:
    """Fault: each cancel walks through the others: 3 s for these on an ordinary machine, instead of 0.05."""
    ticking = Ticking()
    clocks = [ticking.conversation.every("tick", 1000) for _ in range(10_000)]
    for clock in clocks:
        assert clock.cancel()
    assert ticking.registry.stats().timers == 0
    assert not ticking.conversation._periodic


@pytest.mark.parametrize("way", ["end", "cancel_timers"])
@pytest.mark.parametrize("adding", ["every", "replace"])
def test_what_interrupts_an_addition_at_any_line_covers_it(adding: str, way: str) -> None:
    """Fault: a finalizer or signal handler ends the conversation or cancels its timers in the middle of `every` or of
    a replacement, and a timer stays, or the handle says that it goes on."""
    for at in range(2000):
        ticking = Ticking()
        conversation = ticking.conversation
        interrupt: Callable[[], object] = conversation.end if way == "end" else conversation.cancel_timers
        injector = Injector(at, interrupt)
        handles: list[Any] = []

        def add(conversation: Conversation = conversation, handles: list[Any] = handles) -> None:
            if adding == "every":
                handles.append(conversation.every("tick", 100))
            else:
                handles.append(conversation.schedule("idle", 100, replace=True))

        ended = False
        try:
            injector.run(add)
        except stube.ConversationEnded:
            ended = True
        if not injector.fired:
            assert at > 20
            return
        ticking.registry.advance(300)
        timers = ticking.registry.stats().timers
        if way == "end":
            assert (ended or conversation.ended, timers, ticking.seen) == (True, 0, []), f"at {injector.fired}"
            assert not conversation._periodic, f"at {injector.fired}"
        elif adding == "every":
            (clock,) = handles
            assert ("over" in repr(clock)) == (not timers), f"{clock!r} with {timers} timers, at {injector.fired}"
    pytest.fail("the addition did not end")


@pytest.mark.parametrize("way", ["cancel", "end", "cancel_timers"])
def test_a_finalizer_may_end_the_ticks_at_every_line(way: str) -> None:
    """Fault: what interrupts the scheduling of the next tick on the same thread ends nothing, and the tick comes."""
    for at in range(2000):
        ticking = Ticking()
        conversation: Conversation = ticking.conversation
        clock: PeriodicTimer = conversation.every("tick", 100)
        ends: dict[str, Callable[[], object]] = {
            "cancel": clock.cancel, "end": conversation.end, "cancel_timers": conversation.cancel_timers
        }  # fmt: skip
        injector = Injector(at, ends[way])
        injector.run(lambda ticking=ticking: ticking.registry.advance(100))  # type: ignore[misc]
        if not injector.fired:
            assert at > 20
            return
        ticking.registry.advance(500)
        assert len(ticking.seen) <= 1, f"interrupted at {injector.fired}"
        assert ticking.registry.stats().timers == 0, f"interrupted at {injector.fired}"
    pytest.fail("the delivery did not end")
