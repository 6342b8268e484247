"""Back-pressure: the bound of what waits for one conversation, and what is dropped; the same on every local backend."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest

import stube
from stube import Event, RegistryFull, Stats
from stube.testing._harness import PATIENCE, Driver, check_ledger, create
from stube.testing.suite._fixtures import unchanged
from stube_backends.aio import AsyncioRegistry

HOUR: Final = 3_600_000
BACKENDS: Final = ["memory", "virtual", "sharded://?shards=1", "sharded://?shards=3", "asyncio"]


class Payload:
    """An object that can be watched through a weak reference."""


class Bounded:
    """A registry with a bound, its driver, and the calls of its `on_error`."""

    def __init__(self, spec: str, **options: Any) -> None:
        self.told: list[tuple[str, Event, BaseException]] = []
        self._telling = threading.Condition()
        self.run = Driver(create(spec, on_error=self._tell, **options))
        self.registry: Any = self.run.registry

    def _tell(self, cid: str, event: Event, exc: BaseException) -> None:
        with self._telling:
            self.told.append((cid, event, exc))
            self._telling.notify_all()

    def wait_told(self, count: int) -> None:
        """Wait for `count` calls of `on_error`. On asyncio the loop makes them, and it may be busy at the moment."""
        with self._telling:
            assert self._telling.wait_for(lambda: len(self.told) >= count, PATIENCE), self.told

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold all deliveries until the block ends."""
        names = {}
        if hasattr(self.registry, "_shards"):  # each shard has a delivery thread to hold
            names = {self.registry._shard_of(name): name for name in (f"hold{number}" for number in range(200))}
        with ExitStack() as stack:
            for name in names.values() or ("hold",):
                stack.enter_context(self.run.held(name))
            yield

    def queued(self, cid: str) -> int:
        held = self.registry.inspect(cid)
        return held[cid].queued if held else 0


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Bounded] = []

    def build(**options: Any) -> Bounded:
        made.append(Bounded(request.param, **options))
        return made[-1]

    yield build
    for bounded in made:
        bounded.run.recorder.release_all()
        check_ledger(bounded.registry)
        bounded.registry._check()
        assert bounded.registry.close(PATIENCE)
        check_ledger(bounded.registry)


def test_the_oldest_messages_are_dropped(make: Any) -> None:
    """Fault: the newest message is dropped, or those of another conversation are, or the ledger does not count it."""
    bounded = make(max_queued=3)
    run, registry = bounded.run, bounded.registry
    run.subscribe(cid="a")
    run.subscribe(cid="b", topic="other")
    with bounded.held():
        for number in range(10):
            assert registry.publish("t", number) == 1
            assert bounded.queued("a") == min(number + 1, 3)
        assert registry.publish("other", "b's") == 1
        assert registry.stats().dropped == 7
    run.settle()
    assert [seen.event.payload for seen in run.recorder.of("a")] == [7, 8, 9]
    assert [seen.event.payload for seen in run.recorder.of("b")] == ["b's"]
    assert run.stats() == Stats(subscriptions=2, accepted=11, delivered=4, dropped=7)


def test_dropped_messages_are_released_immediately(make: Any) -> None:
    """Fault: dropped messages stay in a queue until a handler that hangs returns."""
    bounded = make(max_queued=2)
    bounded.run.subscribe()
    watched = []
    with bounded.held():
        for _ in range(10):
            payload = Payload()
            watched.append(weakref.ref(payload))
            bounded.registry.publish("t", payload)
            del payload
        gate_is_shut = bounded.registry.stats().queued
        gc.collect()
        alive = [reference() is not None for reference in watched]
        assert gate_is_shut == 2
        # The first one is also passed to `on_error`; on asyncio the loop does this, and the loop is held here.
        assert alive[1:] == [False] * 7 + [True] * 2
    bounded.run.settle()


def test_each_burst_of_drops_is_reported_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: there is a line in the log for each dropped message, or none for the second burst."""
    bounded = make(max_queued=2)
    bounded.run.subscribe(cid="bursts")  # its own name, because a loop may still report what an earlier test dropped
    for burst in (1, 2):
        with bounded.held():
            for number in range(50):
                bounded.registry.publish("t", number)
        bounded.run.settle()
        bounded.wait_told(burst)
    assert [(cid, event.name, event.payload) for cid, event, _ in bounded.told] == [("bursts", "said", 0)] * 2
    assert all(type(exc) is RegistryFull for _, _, exc in bounded.told)
    assert str(bounded.told[0][2]) == (
        "The conversation 'bursts' had max_queued=2 messages waiting when another came: its oldest messages are "
        "dropped until nothing waits for it. See whether its handler hangs, or raise max_queued."
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warnings if "'bursts'" in line] == [str(exc) for _, _, exc in bounded.told]
    assert bounded.registry.stats().failed == 0


def test_a_full_conversation_can_be_ended_instead(make: Any) -> None:
    """Fault: something of it stays, or its timers count as cancelled although no caller cancelled them."""
    bounded = make(max_queued=2, on_full="end")
    run, registry = bounded.run, bounded.registry
    for cid in ("a", "b"):
        run.subscribe(cid=cid)
        run.schedule(HOUR, cid=cid)
        registry.put_pending_flow(cid, "flow")
    run.subscribe("second topic", cid="a", instance_id="other")
    with bounded.held():
        registry.publish("second topic", 0)
        assert registry.publish("t", 1) == 2
        assert registry.publish("t", 2) == 2
        assert "a" not in registry.inspect()
        assert registry.pending_flow("a") is None
        assert bounded.queued("b") == 2
        assert registry.publish("t", 3) == 1
    run.settle()
    bounded.wait_told(2)
    assert [cid for cid, _, _ in bounded.told] == ["a", "b"]
    assert "it has been ended" in str(bounded.told[0][2])
    assert run.stats() == Stats(accepted=8, dropped=8)
    assert run.recorder.seen == []
    assert not any(run.sizes().values())


def test_two_instances_of_one_conversation_share_its_bound(make: Any) -> None:
    """Fault: each instance has a bound of its own; or the second target of one publication survives the end of the
    conversation that the first one caused."""
    bounded = make(max_queued=1, on_full="end")
    for instance_id in ("one", "two", "three"):
        bounded.run.subscribe(instance_id=instance_id)
    with bounded.held():
        assert bounded.registry.publish("t", 1) == 3
        assert bounded.registry.stats().dropped == 3
    assert bounded.run.stats() == Stats(accepted=3, dropped=3)


def test_a_timer_that_would_pass_the_bound_is_refused(make: Any) -> None:
    """G15. Fault: the timer is dropped silently, or the bound of one conversation applies to others."""
    bounded = make(max_queued=2)
    run, registry = bounded.run, bounded.registry
    first = run.schedule(HOUR)
    run.schedule(HOUR, instance_id="other")
    with unchanged(registry), pytest.raises(RegistryFull) as caught:
        run.schedule(HOUR, instance_id="third")
    assert str(caught.value) == (
        "The conversation 'c1' holds 2 timers, and one more would pass max_queued=2. "
        "Raise max_queued, or schedule less."
    )
    run.schedule(HOUR, cid="c2")
    assert first.cancel()
    run.schedule(HOUR)
    with pytest.raises(RegistryFull):
        run.schedule(0)
    assert registry.cancel_timers("c1") == 2
    run.schedule(0)
    run.settle()
    run.schedule(0)
    assert run.stats() == Stats(timers=1, accepted=6, delivered=2, cancelled=3)


def test_messages_and_timers_take_no_room_from_each_other(make: Any) -> None:
    """Fault: a conversation with many timers receives no messages any more, and each message is reported."""
    bounded = make(max_queued=2)
    bounded.run.subscribe()
    for _ in range(2):
        bounded.run.schedule(HOUR)
    with bounded.held():
        for number in range(2):
            bounded.registry.publish("t", number)
        assert bounded.told == []
    bounded.run.settle()
    assert bounded.run.recorder.payloads == [0, 1]


def test_message_to_an_ended_subscription_is_cancelled_not_dropped(make: Any) -> None:
    """Fault: a message whose subscriber has left counts as dropped as well."""
    bounded = make(max_queued=2)
    bounded.run.subscribe("left")
    bounded.run.subscribe("stays", instance_id="other")
    with bounded.held():
        bounded.registry.publish("left", 1)
        bounded.registry.unsubscribe(cid="c1", instance_id="main")
        for number in range(3):
            bounded.registry.publish("stays", number)
    assert bounded.run.stats() == Stats(subscriptions=1, accepted=4, delivered=2, cancelled=1, dropped=1)
    assert bounded.run.recorder.payloads == [1, 2]


def test_messages_and_timers_keep_their_order(make: Any) -> None:
    """G2. Fault: messages that are queued one by one are delivered before or after all timers of their conversation."""
    bounded = make(max_queued=100)
    run = bounded.run
    run.subscribe()
    with bounded.held():
        for number in range(5):
            bounded.registry.publish("t", number)
            run.schedule(0, ("timer", number))
    run.settle()
    assert run.recorder.payloads == [number for number in range(5) for _ in range(2)]
    assert run.recorder.names == ["said", "timer"] * 5


def test_the_bound_of_the_registry_holds_as_well(make: Any) -> None:
    """G22. Fault: with a bound for each conversation, the bound of the whole registry is not checked."""
    bounded = make(max_queued=5, max_pending=11)
    for number in range(4):
        bounded.run.subscribe(cid=f"c{number}")
    with bounded.held():
        assert [bounded.registry.publish("t", number) for number in range(2)] == [4, 4]
        with unchanged(bounded.registry), pytest.raises(RegistryFull, match="max_pending=11"):
            bounded.registry.publish("t", 3)
    bounded.run.settle()
    assert bounded.registry.publish("t", 4) == 4


def test_a_reset_empties_the_room_of_every_conversation(make: Any) -> None:
    """Fault: messages from before the reset still take room."""
    bounded = make(max_queued=2)
    bounded.run.subscribe()
    with bounded.held():
        for number in range(2):
            bounded.registry.publish("t", number)
        bounded.registry.reset_state()
        bounded.run.subscribe()
        for number in range(2, 4):
            bounded.registry.publish("t", number)
        assert bounded.told == []
    bounded.run.settle()
    assert bounded.run.recorder.payloads == [2, 3]


def test_an_on_error_that_raises_stops_nothing(make: Any) -> None:
    """G19. Fault: an exception of `on_error` is raised by a caller's `publish`."""
    bounded = make(max_queued=1)
    bounded.run.subscribe()

    def raises(*arguments: object) -> None:
        bounded._tell(*arguments)
        raise SystemExit("no")

    for part in getattr(bounded.registry, "_shards", (bounded.registry,)):
        part._options = part._options._replace(on_error=raises)
    with bounded.held():
        for number in range(3):
            assert bounded.registry.publish("t", number) == 1
    bounded.run.settle()
    bounded.wait_told(1)
    assert bounded.run.recorder.payloads == [2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_queued": 0}, "max_queued must be at least 1, not 0"),
        ({"max_queued": -1}, "max_queued must be at least 1, not -1"),
        ({"max_queued": "many"}, "max_queued"),
        ({"max_queued": 1, "on_full": "block"}, "on_full"),
    ],
)
@pytest.mark.parametrize("backend", ["memory", "virtual", "sharded", "asyncio"])
def test_a_wrong_bound_is_refused(backend: str, options: dict[str, Any], problem: str) -> None:
    """Fault: the mistake shows only with the first message that does not fit."""
    with pytest.raises(stube.ConfigError, match=problem):
        stube.create_registry(backend, **options)


def test_the_bound_can_be_given_in_a_url() -> None:
    """Fault: the options cannot be chosen by configuration."""
    with stube.create_registry("memory://?max_queued=2&on_full=end") as registry:
        registry.schedule_event(cid="c", instance_id="i", delay_ms=HOUR, event="e")
        registry.schedule_event(cid="c", instance_id="i", delay_ms=HOUR, event="e")
        with pytest.raises(RegistryFull):
            registry.schedule_event(cid="c", instance_id="i", delay_ms=HOUR, event="e")


def test_one_stalled_stream_delays_no_other_and_fills_no_memory() -> None:
    """Fault: messages for the stalled stream accumulate, or those of the others wait behind them."""
    heard: dict[str, list[int]] = {}
    stalled = asyncio.Event()

    async def dispatch(cid: str, event: Event) -> None:
        if cid == "stalled":
            await stalled.wait()
        heard.setdefault(cid, []).append(event.payload)

    async def main() -> None:
        async with AsyncioRegistry(max_queued=10) as registry:
            registry.install_dispatch(dispatch)
            for cid in ("stalled", *(f"c{number}" for number in range(20))):
                registry.subscribe(cid=cid, instance_id="main", topic="t", event="said")
            for number in range(1000):
                registry.publish("t", number)
                assert registry.stats().queued <= 10 * 21
                while registry.inspect("c19")["c19"].queued:
                    await asyncio.sleep(0)
            assert registry.inspect("stalled")["stalled"].queued == 10
            assert all(heard[f"c{number}"] == list(range(1000)) for number in range(20))
            assert registry.stats().dropped == 1000 - 1 - 10
            stalled.set()
            assert await registry.settled()
            assert heard["stalled"] == [0, *range(990, 1000)]
            assert registry.stats().balanced

    asyncio.run(main())
