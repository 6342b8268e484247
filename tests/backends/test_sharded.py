"""Promises of the sharded backend alone: its locks, its room, and the calls that are one step for all shards.

Where a test needs a thread in the middle of an operation of a shard, it runs a function by `Core.run_locked`: the
function is called where a finalizer or a signal handler would be. A deadlock shows as a thread that does not end.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pytest
from typing_extensions import override

import stube
from stube import Conversations, Event, RegistryClosed, RegistryFull, Stats
from stube.testing._harness import (
    HOUR,
    PATIENCE,
    Injector,
    check_ledger,
    join_or_standstill,
    passes_through,
    run_script,
    run_threads,
    tracing,
    watchdog,
)
from stube.testing.suite._fixtures import OPERATIONS
from stube_backends.engine import ThreadDriver
from stube_backends.engine._core import run_all_locked
from stube_backends.engine._deferred import DeferredCalls
from stube_backends.sharded import ShardedRegistry
from stube_backends.sharded._shard import Shard

Make = Callable[..., ShardedRegistry]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make registries that the fixture checks and closes after the test, unless a thread is stuck in one."""
    made: list[ShardedRegistry] = []

    def build(shards: int = 2, **options: Any) -> ShardedRegistry:
        registry = ShardedRegistry(shards=shards, **options)
        made.append(registry)
        return registry

    yield build
    for registry in made:
        assert passes_through(registry.stats), "a thread is stuck in a shard"
        registry._check()
        assert registry.close(PATIENCE)
        registry._check()
        check_ledger(registry)
    made.clear()


def cids(registry: ShardedRegistry, each: int = 1) -> list[list[str]]:
    """Return `each` conversations of every shard, shard by shard. Their names differ from process to process."""
    count = len(registry._shards)
    found: list[list[str]] = [[] for _ in range(count)]
    number = 0
    while min(map(len, found)) < each:
        cid = f"c{number}"
        found[hash(cid) % count].append(cid)
        number += 1
    return [names[:each] for names in found]


def one_of_each(registry: ShardedRegistry) -> list[str]:
    return [names[0] for names in cids(registry)]


def tick(registry: ShardedRegistry, cid: str, delay_ms: float = HOUR, event: Any = "tick") -> stube.TimerHandle:
    return registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay_ms, event=event)


def subscribe(registry: ShardedRegistry, cid: str, topic: str = "t", instance_id: str = "main") -> None:
    registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event="said")


def unsubscribe(registry: ShardedRegistry, cid: str) -> int:
    return registry.unsubscribe(cid=cid, instance_id="main")


def within(registry: ShardedRegistry, shard: int, action: Callable[[], object]) -> None:
    """Run `action` where a finalizer would run that interrupts an operation of the shard."""
    registry._shards[shard].core.run_locked(action)


def shares(registry: ShardedRegistry) -> list[int]:
    return [shard.core.engine.max_pending for shard in registry._shards]


def pending(registry: ShardedRegistry) -> int:
    """Return the number that `max_pending` bounds, at one instant."""
    cores = [shard.core for shard in registry._shards]
    return int(run_all_locked(cores, lambda: sum(core.engine.pending() for core in cores)))


def end_in_time(*functions: Callable[[], object], timeout: float = 5.0) -> None:
    """Run each function in a thread of its own. Only a deadlock takes as long as the timeout."""
    errors: list[BaseException] = []

    def body(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            errors.append(exc)

    threads = [threading.Thread(target=body, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    if errors:
        raise errors[0]


def elsewhere(action: Callable[[], object]) -> None:
    """Run `action` in another thread; if it has to wait for a lock of the caller, it ends after this call."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    join_or_standstill(thread)


def at_every_line(
    make: Make, prepare: Callable[[ShardedRegistry], Any], call: Callable[..., Any], action: Callable[..., object]
) -> Iterator[tuple[ShardedRegistry, Any, Any, str]]:
    """Run `call(registry, prepared)` once for each of its lines, on a new registry, and run `action` at that line.

    Yield the registry, the result of `prepare`, the result of `call` or the error of stube that it raised, the line.
    """
    for at in range(10_000):
        registry = make()
        prepared = prepare(registry)
        injector = Injector(at, partial(action, registry, prepared))
        result: Any
        with watchdog(), tracing(injector):
            try:
                result = call(registry, prepared)
            except stube.StubeError as exc:
                result = exc
        if not injector.fired:
            return
        yield registry, prepared, result, injector.fired


# -- options and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (0, "The backend 'sharded' refuses its options: shards must be from 1 to 1024, not 0. "
            "Each is a thread; 8 serve well."),
        (1025, "The backend 'sharded' refuses its options: shards must be from 1 to 1024, not 1025. "
               "Each is a thread; 8 serve well."),
        (True, "The option 'shards' of the backend 'sharded' must be an int or None, not True. "
               "Give such a value, or leave it out for None."),
        ("x", "The option 'shards' of the backend 'sharded' must be an int or None, not 'x'. "
              "Give such a value, or leave it out for None."),
        (2.0, "The option 'shards' of the backend 'sharded' must be an int or None, not 2.0. "
              "Give such a value, or leave it out for None."),
    ],
)  # fmt: skip
def test_a_wrong_number_of_shards_is_refused_in_two_sentences(shards: Any, message: str) -> None:
    """Fault: a wrong number is taken for another number, or fails later with a message of Python's own."""
    with pytest.raises(stube.ConfigError, match=f"^{re.escape(message)}$"):
        stube.create_registry("sharded", shards=shards)


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        (0, ValueError, "shards must be from 1 to 1024, not 0. Each is a thread; 8 serve well."),
        (-1, ValueError, "shards must be from 1 to 1024, not -1. Each is a thread; 8 serve well."),
        (False, TypeError, "shards must be an int, not False. Pass a number of shards."),
        ("8", TypeError, "shards must be an int, not '8'. Pass a number of shards."),
    ],
)
def test_the_class_checks_the_number_of_shards_itself(shards: Any, error: type[Exception], message: str) -> None:
    """Fault: only the factory checks the number, and `False` means 0 shards."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ShardedRegistry(shards=shards)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("sharded://?shards=7", {}),
        ("sharded", {"shards": 7}),
        ({"backend": "sharded", "shards": 7}, {}),
        ("stube_backends.sharded:ShardedRegistry", {"shards": 7}),
    ],
)
def test_every_form_of_a_spec_sets_the_number_of_shards(spec: Any, options: dict[str, Any]) -> None:
    """Fault: one of the forms of a spec loses the number."""
    with stube.create_registry(spec, **options) as registry:
        assert repr(registry) == "<ShardedRegistry: 7 shards, 0 timers, 0 queued>"


@pytest.mark.parametrize(
    ("processors", "gil", "expected"),
    [
        (1, True, 5),
        (2, True, 6),
        (8, True, 12),
        (28, True, 32),
        (64, True, 32),
        (None, True, 5),
        (2, False, 12),
        (12, False, 32),
        (64, False, 32),
    ],
)
def test_the_default_number_of_shards_depends_on_processors_and_gil(
    monkeypatch: pytest.MonkeyPatch, processors: int | None, gil: bool, expected: int
) -> None:
    """Fault: one shard on a small machine, or hundreds of threads on a large one."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    with ShardedRegistry() as registry:
        assert isinstance(registry, ShardedRegistry)
        assert len(registry._shards) == expected


@pytest.mark.parametrize("max_pending", [0, -1])
def test_a_bound_below_one_is_refused(max_pending: int) -> None:
    """Fault: the constructor makes a registry that can hold nothing, which only its first use shows."""
    message = f"max_pending must be at least 1, not {max_pending}. Leave it out, or give None."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ShardedRegistry(max_pending=max_pending)


def test_the_repr_counts_all_shards_and_says_when_it_is_closed(make: Make) -> None:
    """Fault: the repr shows the figures of one shard; or it takes a lock, or fails on a closed registry."""
    registry = make(shards=3)
    for cid in one_of_each(registry):
        tick(registry, cid)
    shown: list[str] = []
    within(registry, 0, lambda: shown.append(repr(registry)))
    assert [repr(registry), *shown] == ["<ShardedRegistry: 3 shards, 3 timers, 0 queued>"] * 2
    registry.close()
    assert repr(registry) == "<ShardedRegistry closed: 3 shards, 0 timers, 0 queued>"


def test_capabilities_exclude_a_common_order_and_one_snapshot(make: Make) -> None:
    """Fault: a host that asks for one order of all subscribers is told that the registry keeps it."""
    assert make().capabilities == {"by_reference", "fair", "fork", "own_clock", "sizes"}


# -- conversations and shards --------------------------------------------------------------------------------------


def test_conversations_are_spread_and_each_stays_in_its_shard(make: Make) -> None:
    """Fault: the hash leaves shards empty; or a timer, a subscription and a baton of one conversation lie in different
    shards, which would break the order and the end of the conversation."""
    registry = make(shards=8)
    opened = [Conversations(registry).open() for _ in range(400)]
    for conversation in opened:
        conversation.put_flow("flow")
        conversation.schedule("tick", HOUR)
        conversation.subscribe("t", "said", instance_id="other")
    lived = [set(shard.inspect()) for shard in registry._shards]
    assert sum(map(len, lived)) == len(set().union(*lived)) == 400
    # Each shard's expectation is 50, its deviation 6.6: a good hash is outside of 10 to 90 once in 10**8 runs.
    assert all(10 < len(names) < 90 for names in lived), list(map(len, lived))
    for conversation in opened:
        info = registry.inspect(conversation.cid)[conversation.cid]
        assert (len(info.timers), len(info.subscriptions), info.pending_flow) == (1, 1, True)


def test_a_name_of_a_subclass_leads_to_the_shard_of_the_plain_string(make: Make) -> None:
    """Fault: the registry calls the hash of a string subclass, such as an enum, and does not find the conversation."""

    class Odd(str):
        @override
        def __hash__(self) -> int:
            return 1 + str.__hash__(self)

        __eq__ = str.__eq__

    registry = make(shards=7)
    for number in range(20):
        cid = f"c{number}"
        tick(registry, Odd(cid))
        subscribe(registry, Odd(cid))
        registry.put_pending_flow(Odd(cid), number)
        assert registry.cancel_timers(cid) == 1
        assert registry.remove_subscriptions_for_cid(cid) == 1
        assert registry.pending_flow(cid) == number


@pytest.mark.parametrize("cid", [7, None, b"c", "", ["c"]])
@pytest.mark.parametrize(
    "operation", sorted(OPERATIONS.keys() - {"publish", "subscriptions", "reset_state", "install_dispatch"})
)
def test_an_invalid_cid_is_refused_by_every_operation(make: Make, operation: str, cid: Any) -> None:
    """Fault: the registry hashes an unhashable argument, and the error is about hashes."""
    with pytest.raises(ValueError if cid == "" else TypeError, match=r"^cid must "):
        OPERATIONS[operation](make(), cid)


def test_snapshots_show_all_shards_as_one_registry(make: Make) -> None:
    """Fault: a snapshot leaves out a shard, or one shard replaces the entries of another for the same topic."""
    registry = make(shards=5)
    names = cids(registry, 2)
    flat = sorted(cid for shard in names for cid in shard)
    for cid in flat:
        tick(registry, cid)
        subscribe(registry, cid, "common")
        registry.put_pending_flow(cid, cid)
    for index, shard in enumerate(names):
        subscribe(registry, shard[0], f"t{index}")
    assert registry.stats() == Stats(pending_flows=10, subscriptions=15, timers=10, accepted=10)
    assert list(registry.inspect()) == flat
    found = registry.subscriptions()
    assert found.pop("common") == {(cid, "main"): "said" for cid in flat}
    assert found == {f"t{index}": {(shard[0], "main"): "said"} for index, shard in enumerate(names)}
    assert registry.sizes()["timers of conversations"] == 10
    registry.reset_state()
    assert registry.stats() == Stats(accepted=10, dropped=10)
    assert registry.inspect() == {}
    assert registry.subscriptions() == {}
    assert set(registry.sizes().values()) == {0}


# -- threads -------------------------------------------------------------------------------------------------------


def threads_of(before: set[threading.Thread]) -> list[str]:
    return sorted(thread.name for thread in set(threading.enumerate()) - before)


@pytest.mark.parametrize("first", ["schedule_event", "publish"])
def test_each_shard_starts_its_own_thread_with_its_first_work(make: Make, first: str) -> None:
    """G23. Fault: all threads start with the first timer, or each timer starts one; or a thread has a wrong name."""
    before = set(threading.enumerate())
    registry = make(shards=3)
    names = cids(registry, 2)
    for shard in names:
        registry.put_pending_flow(shard[0], 1)
        subscribe(registry, shard[0], shard[0])
    registry.stats()
    assert threads_of(before) == []
    started = []
    for index in (1, 0, 2):
        started.append(f"stube-sharded-{index}")
        for _ in range(2):
            if first == "publish":
                registry.publish(names[index][0], "message")
            else:
                tick(registry, names[index][0])
                tick(registry, names[index][1])
            assert threads_of(before) == sorted(started)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    assert registry.close(PATIENCE)
    assert threads_of(before) == []


def test_a_message_to_several_shards_starts_those_that_hold_the_topic(make: Make) -> None:
    """G23. Fault: a message that is refused starts threads, or one that is accepted starts too few."""
    before = set(threading.enumerate())
    registry = make(shards=4, max_pending=2)
    names = one_of_each(registry)
    for cid in (names[0], names[2], names[3]):
        subscribe(registry, cid)
    with pytest.raises(RegistryFull):
        registry.publish("t", 1)
    assert threads_of(before) == []
    unsubscribe(registry, names[3])
    assert registry.publish("t", 1) == 2
    assert threads_of(before) == ["stube-sharded-0", "stube-sharded-2"]


def test_a_thread_that_cannot_start_changes_nothing_in_any_shard(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """G15, G23. Fault: the first shard has accepted the message when the thread of the second fails to start."""
    registry = make(shards=2)
    names = one_of_each(registry)
    for cid in names:
        subscribe(registry, cid)
    before, start = (registry.stats(), registry.sizes()), threading.Thread.start

    def only_the_first(thread: threading.Thread) -> None:
        if thread.name == "stube-sharded-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", only_the_first)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            registry.publish("t", 1)
        assert (registry.stats(), registry.sizes()) == before
    assert registry.publish("t", 1) == 2


@pytest.mark.parametrize("collected", [False, True])
def test_a_dropped_registry_is_freed_immediately_with_its_threads(collected: bool) -> None:
    """G13. Fault: a reference cycle or a thread keeps the host's dispatch alive, until a collection or always."""
    before = set(threading.enumerate())

    class Dispatch:
        def __call__(self, cid: str, event: Event) -> None:
            """Do nothing."""

    gc.collect()
    gc.disable()
    try:
        registry, dispatch = ShardedRegistry(shards=3), Dispatch()
        names = one_of_each(registry)
        registry.install_dispatch(dispatch)
        for cid in names:
            tick(registry, cid, 0)
            subscribe(registry, cid)
        registry.publish("t", "message")
        handles = [tick(registry, cid) for cid in names]
        assert registry.settle(PATIENCE)
        assert [handle.cancel() for handle in handles] == [True] * 3
        threads = set(threading.enumerate()) - before
        assert len(threads) == 3
        watched: list[weakref.ref[Any]] = [
            weakref.ref(dispatch),
            weakref.ref(registry),
            *map(weakref.ref, registry._shards),
        ]
        del registry, dispatch
        if collected:
            gc.collect()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert [reference() for reference in watched] == [None] * 5
        assert [handle.cancel() for handle in handles] == [False] * 3
    finally:
        gc.enable()


def test_a_handle_that_outlives_the_registry_still_cancels(make: Make) -> None:
    """Fault: when the registry is freed, its accepted work is lost, or its handles no longer cancel."""
    heard = threading.Event()
    registry = ShardedRegistry(shards=2)
    names = one_of_each(registry)
    registry.install_dispatch(lambda cid, event: heard.set())
    handle = tick(registry, names[0])
    tick(registry, names[1], 20)
    threads = {thread for thread in threading.enumerate() if thread.name.startswith("stube-sharded")}
    del registry
    assert heard.wait(PATIENCE), "an accepted timer was not delivered"
    assert handle.cancel()
    assert not handle.cancel()
    del handle
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_a_handler_that_blocks_delays_only_its_own_shard(make: Make) -> None:
    """Fault: all shards share one delivery thread, or one lock around their deliveries."""
    registry = make(shards=8)
    names = cids(registry, 2)
    entered, release = threading.Event(), threading.Event()
    heard: list[str] = []
    seven = threading.Semaphore(0)

    def dispatch(cid: str, event: Event) -> None:
        if event.name == "block":
            entered.set()
            release.wait(PATIENCE)
        heard.append(cid)
        seven.release()

    registry.install_dispatch(dispatch)
    for cid, _ in names:
        subscribe(registry, cid)
    tick(registry, names[3][1], 0, "block")
    assert entered.wait(PATIENCE)
    try:
        assert registry.publish("t", "message") == 8
        for _ in range(7):
            assert seven.acquire(timeout=PATIENCE), f"only {heard}"
        assert sorted(heard) == sorted(cid for index, (cid, _) in enumerate(names) if index != 3)
        # The handler delays no operation either, not even on its own shard.
        for operation in OPERATIONS.values():
            if operation is not OPERATIONS["reset_state"] and operation is not OPERATIONS["install_dispatch"]:
                assert passes_through(partial(operation, registry, names[3][1]))
        assert not registry.settle(0.01)
    finally:
        release.set()
    assert registry.settle(PATIENCE)


def test_as_many_handlers_as_shards_may_wait_for_each_other(make: Make) -> None:
    """Fault: the registry has fewer delivery threads than shards."""
    registry = make(shards=8)
    meeting = threading.Barrier(8)
    met: list[int] = []
    registry.install_dispatch(lambda cid, event: met.append(meeting.wait(PATIENCE)))
    for cid in one_of_each(registry):
        tick(registry, cid, 0)
    assert registry.settle(PATIENCE)
    assert sorted(met) == list(range(8))


@pytest.mark.parametrize("slow", [None, HOUR])
def test_one_dispatch_serves_all_shards(make: Make, slow: float | None) -> None:
    """Fault: only one shard gets the dispatch; or several threads share the state of a wrapper around it."""
    registry = make(shards=4, slow_dispatch_ms=slow)
    for number in range(2):
        heard: list[tuple[str, str]] = []

        def dispatch(cid: str, event: Event, heard: list[tuple[str, str]] = heard) -> None:
            heard.append((cid, event.name))

        registry.install_dispatch(dispatch)
        for cid in one_of_each(registry):
            tick(registry, cid, 0, f"tick{number}")
        assert registry.settle(PATIENCE)
        assert sorted(heard) == sorted((cid, f"tick{number}") for cid in one_of_each(registry))


def test_no_shard_delivers_while_a_dispatch_is_being_installed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the shards get the dispatch one after the other. One shard delivers a timer to the new dispatch, and
    another shard delivers the work that this causes to the old one."""
    registry = make(shards=3)
    names = one_of_each(registry)
    heard: list[str] = []
    registry.install_dispatch(lambda cid, event: heard.append("old"))
    for cid in names:
        tick(registry, cid, 0)
    assert registry.settle(PATIENCE)
    half_way, go_on, made = threading.Event(), threading.Event(), 0

    install = Shard.install_locked

    def install_locked(shard: Shard, core: Any, dispatch: Any) -> Any:
        nonlocal made
        made += 1
        if made == 2:  # the first shard has it
            half_way.set()
            assert go_on.wait(PATIENCE)
        return install(shard, core, dispatch)

    monkeypatch.setattr(Shard, "install_locked", install_locked)
    adders = [threading.Thread(target=tick, args=(registry, cid, 0), daemon=True) for cid in names]
    installer = threading.Thread(
        target=registry.install_dispatch, args=(lambda cid, event: heard.append("new"),), daemon=True
    )
    installer.start()
    assert half_way.wait(PATIENCE)
    for adder in adders:
        adder.start()
    go_on.set()
    for thread in (installer, *adders):
        thread.join(PATIENCE)
    assert registry.settle(PATIENCE)
    assert heard == ["old"] * 3 + ["new"] * 3


def test_a_replaced_dispatch_is_freed_outside_the_locks(make: Make) -> None:
    """G20. Fault: the last reference to the old dispatch is dropped under the locks, and the destructors of the host's
    own objects run there, while all other threads wait."""
    registry = make()
    passed: list[bool] = []

    class Host:
        def __call__(self, cid: str, event: Event) -> None:
            """Do nothing."""

        def __del__(self) -> None:
            passed.append(passes_through(registry.stats))

    registry.install_dispatch(Host())
    registry.install_dispatch(lambda cid, event: None)
    assert passed == [True]


# -- re-entrant calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [*OPERATIONS, "stats", "inspect", "sizes", "close", "repr", "cancel"])
def test_crossing_reentrant_calls_of_two_shards_do_not_deadlock(make: Make, operation: str) -> None:
    """G20. Fault: a re-entrant call waits for the lock of another shard, and two such calls wait for each other."""
    registry = make()
    names = one_of_each(registry)
    handles = {cid: tick(registry, cid) for cid in names}
    for cid in names:
        subscribe(registry, cid)
        registry.put_pending_flow(cid, "flow")
    others: dict[str, Callable[[str], object]] = {
        "stats": lambda cid: registry.stats(),
        "inspect": lambda cid: registry.inspect(),
        "sizes": lambda cid: registry.sizes(),
        "close": lambda cid: registry.close(),
        "repr": lambda cid: repr(registry),
        "cancel": lambda cid: handles[cid].cancel(),
    }
    both = threading.Barrier(2)

    def cross(shard: int) -> None:
        def finalizer() -> None:
            both.wait(PATIENCE)
            call = others.get(operation) or partial(OPERATIONS[operation], registry)
            call(names[1 - shard])
            both.wait(PATIENCE)  # neither returns before the other has made its call

        within(registry, shard, finalizer)

    end_in_time(partial(cross, 0), partial(cross, 1))
    assert registry._shards[0].core.deferred == {}, "a deferred call has not run"
    stats, info = registry.stats(), registry.inspect()
    match operation:
        case "schedule_event":
            assert stats.timers == 4
        case "cancel_timers" | "cancel" | "reset_state" | "close":
            assert stats.timers == 0
        case "unsubscribe" | "remove_subscriptions_for_cid":
            assert registry.subscriptions() == {}
        case "pending_flow" | "forget_pending_flow":
            assert not any(each.pending_flow for each in info.values())
        case "publish":
            assert registry.settle(PATIENCE)
            assert registry.stats().delivered == 4
    check_ledger(registry)


@pytest.mark.parametrize("waits_in", ["the shard", "the start"])
def test_reentrant_calls_during_a_thread_start_do_not_deadlock(make: Make, waits_in: str) -> None:
    """G20. Fault: a caller in the middle of an operation waits for the start of a thread, while the caller that starts
    it has been interrupted too, and waits for the operation of the first."""
    registry = make()
    names = one_of_each(registry)
    spawns = {shard._driver: shard._driver._spawn for shard in registry._shards}
    inside = threading.Event()  # the other caller has come as far as it can
    crossed: list[ThreadDriver] = []

    def interrupted(driver: ThreadDriver, serve: Callable[[], None]) -> Any:
        if not crossed:
            crossed.append(driver)
            inside.set()
            # With one lock for all starts the other start cannot begin; then this wait ends after 0.2 s.
            other.wait(0.2)
            if waits_in == "the shard":
                subscribe(registry, names[0], instance_id="deferred")
            else:
                tick(registry, names[0 if driver is registry._shards[1]._driver else 1])
        elif waits_in == "the start" and len(crossed) == 1:
            crossed.append(driver)
            other.set()
            tick(registry, names[0 if driver is registry._shards[1]._driver else 1])
        return spawns[driver](serve)

    other = threading.Event()
    for driver in spawns:
        driver._spawn = partial(interrupted, driver)

    def first() -> None:
        tick(registry, names[0])

    def second() -> None:
        if waits_in == "the start":
            assert inside.wait(PATIENCE)
            tick(registry, names[1])
        else:
            within(registry, 0, finalizer)

    def finalizer() -> None:
        assert inside.wait(PATIENCE)
        other.set()
        tick(registry, names[0])

    end_in_time(first, second)
    tick(registry, names[1])
    stats = registry.stats()
    assert stats.timers == stats.accepted >= 3
    for shard in registry._shards:
        assert shard.core.started, "the shard has timers, but no thread"


@pytest.mark.parametrize("later", ["publish", "unsubscribe", "cancel_timers", "reset_state"])
def test_calls_after_a_deferred_call_are_deferred_in_order(make: Make, later: str) -> None:
    """G20. Fault: a finalizer makes two calls for two shards, and the second takes effect before the first: a message
    overtakes the subscription made before it, an unsubscribe overtakes the subscribe, or a reset drops a timer that was
    scheduled after it."""
    registry = make(shards=3)
    names = one_of_each(registry)
    heard: list[str] = []
    registry.install_dispatch(lambda cid, event: heard.append(cid))
    inside, deferred, results = threading.Event(), threading.Event(), list[object]()

    def finalizer() -> None:
        subscribe(registry, names[1])  # another thread is inside this shard
        tick(registry, names[1])
        match later:
            case "publish":
                results.append(registry.publish("t", "message"))
            case "unsubscribe":
                results.append(registry.unsubscribe(cid=names[1], instance_id="main"))
            case "cancel_timers":
                results.append(registry.cancel_timers(names[1]))
            case _:
                registry.reset_state()
        subscribe(registry, names[2])  # this shard is free, but the call comes after deferred ones
        tick(registry, names[2])
        deferred.set()

    def hold() -> None:
        inside.set()
        assert deferred.wait(PATIENCE)

    def interrupted() -> None:
        assert inside.wait(PATIENCE)
        within(registry, 0, finalizer)

    end_in_time(partial(within, registry, 1, hold), interrupted)
    assert registry.settle(PATIENCE)
    subscribers = sorted(cid for cid, _ in registry.subscriptions()["t"])
    left = [names[2]] if later in ("unsubscribe", "reset_state") else sorted(names[1:])
    assert (subscribers, registry.stats().timers) == (left, 1 + int(later in ("publish", "unsubscribe")))
    assert heard == ([names[1]] if later == "publish" else [])


def test_a_call_during_an_operation_of_all_shards_runs_right_after_it(make: Make) -> None:
    """G20. Fault: a finalizer's call takes effect in the middle of an operation of several shards, or not until the
    next operation."""
    registry = make(shards=3)
    cid = one_of_each(registry)[1]
    during: list[object] = []

    def operation() -> None:
        subscribe(registry, cid)
        during.append(registry.subscriptions())

    cores = [shard.core for shard in registry._shards]
    run_all_locked(cores, operation)
    assert during == [{}]
    assert cores[0].deferred == {}, "a deferred call has not run"
    assert [key for key, _ in registry.subscriptions()["t"]] == [cid]


def test_a_baton_put_after_a_deferred_reset_stays(make: Make) -> None:
    """G8, G20. Fault: the reset is deferred, but the baton is not, so that the reset forgets a baton put after it."""
    registry = make()
    names = one_of_each(registry)
    for cid in names:
        registry.put_pending_flow(cid, "before")

    def finalizer() -> None:
        registry.reset_state()
        registry.put_pending_flow(names[1], "after")

    within(registry, 0, finalizer)
    assert [registry.pending_flow(cid) for cid in names] == [None, "after"]


def test_a_call_deferred_while_deferred_calls_run_is_not_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """G20. Fault: a call deferred after the last look at the queue and before its removal is removed with it."""
    registry = make()
    name = one_of_each(registry)[0]
    core = registry._shards[0].core

    class Deferred(DeferredCalls):
        @override
        def pop(
            self, *arguments: Any
        ) -> Any:  # as if a signal handler ran here, and its operation were interrupted, too
            if not handled:
                handled.append(True)
                core.run_locked(subscribe, registry, name, "t", "in the gap")
            return super().pop(*arguments)

    handled: list[bool] = []
    deferred = Deferred()
    for shard in registry._shards:
        shard.core.deferred = deferred
    core.group.deferred = deferred
    core.run_locked(subscribe, registry, name, "t", "first")
    assert handled
    assert sorted(instance_id for _, instance_id in registry.subscriptions()["t"]) == ["first", "in the gap"]
    assert deferred == {}


def test_a_reentrant_timer_ignores_deferred_calls_of_other_threads(make: Make) -> None:
    """G20, G21. Fault: a re-entrant timer counts the deferred calls of all threads, and fails while another thread
    removes its own."""
    registry = make(max_pending=100)
    names = one_of_each(registry)
    at_it, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        at_it.set()
        assert go_on.wait(PATIENCE)

    def other() -> None:
        core = registry._shards[1].core

        def defer() -> None:
            core.deferred.defer(wait)
            core.deferred.defer(done.clear)

        core.run_locked(defer)
        done.set()

    class Switch:
        """A deferred call that, when it is asked whether it is a timer, lets the other thread remove its calls."""

        def __call__(self) -> None:
            """Do nothing."""

        @property
        def __func__(self) -> None:
            go_on.set()
            assert done.wait(PATIENCE)

    def finalizer() -> None:
        registry._shards[0].core.deferred.defer(Switch())
        tick(registry, names[0])

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    assert at_it.wait(PATIENCE)
    within(registry, 0, finalizer)
    thread.join(PATIENCE)
    assert registry.stats().timers == 1


@pytest.mark.parametrize("why", ["closed", "full"])
def test_a_refused_reentrant_timer_keeps_the_interrupted_calls_lock(make: Make, why: str) -> None:
    """G20. Fault: a signal handler runs after its thread has taken a lock and before the operation knows it. The
    refusal of the handler's timer releases the lock of the interrupted operation."""

    def prepare(registry: ShardedRegistry) -> str:
        cid = one_of_each(registry)[0]
        tick(registry, cid)
        if why == "full":
            tick(registry, cid)
        return cid

    def handler(registry: ShardedRegistry, cid: str) -> None:
        if why == "closed":
            registry.close()
        else:
            registry.install_dispatch(lambda cid, event: None)  # deferred, and so are the calls after it
        with suppress(RegistryClosed, RegistryFull):
            tick(registry, cid)

    def call(registry: ShardedRegistry, cid: str) -> int:
        return registry.cancel_timers(cid)

    for registry, _, _, where in at_every_line(partial(make, max_pending=2), prepare, call, handler):
        assert passes_through(registry.stats), where
        registry._check()


# -- room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pending", [1, 2, 6, 7, 8, 100])
def test_shares_add_up_to_max_pending_and_one_shard_may_use_all(make: Make, max_pending: int) -> None:
    """G22. Fault: each shard is bound by its share, so that a full shard refuses while others are empty; or each shard
    may use the whole bound; or room is lost if the bound is no multiple of the number of shards, or smaller."""
    registry = make(shards=7, max_pending=max_pending)
    assert sum(shares(registry)) == max_pending
    for cid in one_of_each(registry):
        handles = []
        with suppress(RegistryFull):
            for _ in range(max_pending):
                handles.append(tick(registry, cid))
                assert sum(shares(registry)) == max_pending
        assert len(handles) == max_pending, "a shard is full while there is room"
        message = (
            f"The registry holds {max_pending} timers and messages, and 1 more would pass max_pending={max_pending}. "
            "Raise max_pending, or schedule and publish less."
        )
        before = registry.stats()
        for another in one_of_each(registry):
            with pytest.raises(RegistryFull, match=f"^{re.escape(message)}$"):
                tick(registry, another)
        assert registry.stats() == before
        assert [handle.cancel() for handle in handles] == [True] * max_pending
        registry._check()


def test_a_refusal_does_not_mention_the_shares(make: Make) -> None:
    """Fault: the traceback shows two refusals, and the first is about a share, which the host did not set."""
    registry = make(max_pending=4)
    names = one_of_each(registry)
    for cid in names:
        subscribe(registry, cid)
    for _ in range(4):
        tick(registry, names[0])
    for add in (partial(tick, registry, names[0]), partial(registry.publish, "t", "message")):
        with pytest.raises(RegistryFull) as caught:
            add()
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_registry_without_max_pending_has_no_shares(make: Make) -> None:
    """Fault: None is taken for a number, by an ordinary or by a re-entrant timer."""
    registry = make(shards=3, max_pending=None)
    name = one_of_each(registry)[0]
    for _ in range(100):
        tick(registry, name)
    within(registry, 0, lambda: tick(registry, name))
    within(registry, 1, lambda: tick(registry, name))
    assert registry.stats().timers == 102


def test_a_message_over_several_shards_is_refused_whole(make: Make) -> None:
    """G15, G22. Fault: the shards that have room accept the message, and the others refuse it."""
    registry = make(shards=4, max_pending=7)
    for shard in cids(registry, 2):
        for cid in shard:
            subscribe(registry, cid)
    with pytest.raises(RegistryFull, match=r"^The registry holds 0 timers and messages, and 8 more would pass"):
        registry.publish("t", "message")
    assert registry.stats() == Stats(subscriptions=8)
    left = cids(registry, 2)[3][1]
    unsubscribe(registry, left)
    assert registry.publish("t", "message") == 7
    assert registry.settle(PATIENCE)
    tick(registry, left)
    with pytest.raises(RegistryFull, match=r"^The registry holds 1 timers and messages, and 7 more would pass"):
        registry.publish("t", "message")
    assert registry.stats() == Stats(subscriptions=7, timers=1, accepted=8, delivered=7)


def test_a_message_may_use_the_free_room_of_all_shards(make: Make) -> None:
    """G22. Fault: a message is refused because the share of one shard is too small, though the registry has room."""
    registry = make(shards=5, max_pending=10)
    names = cids(registry, 9)
    subscribe(registry, names[0][0])
    for cid in names[1]:
        subscribe(registry, cid)
    assert registry.publish("t", "message") == 10
    assert registry.settle(PATIENCE)


def test_a_message_needs_room_only_for_its_current_subscribers(make: Make) -> None:
    """G22. Fault: publish counts the subscribers before it holds the locks. Some of them leave, timers take their room,
    and the message is refused though it fitted at every instant."""

    def prepare(registry: ShardedRegistry) -> list[list[str]]:
        names = cids(registry, 5)
        for cid in names[0]:
            subscribe(registry, cid)
        for shard in names:
            tick(registry, shard[0]).cancel()  # starts the thread
        return names

    def action(registry: ShardedRegistry, names: list[list[str]]) -> None:
        def swap() -> None:
            for cid in names[0][:3]:
                unsubscribe(registry, cid)
            with suppress(RegistryFull):
                for cid in names[1][:3]:
                    tick(registry, cid)

        elsewhere(swap)

    def call(registry: ShardedRegistry, names: list[list[str]]) -> int:
        return registry.publish("t", "message")

    for _, _, result, where in at_every_line(partial(make, max_pending=6), prepare, call, action):
        assert result in (2, 3, 4, 5), f"{result!r} at {where}"


def test_an_accepted_reentrant_timer_is_not_dropped_while_there_is_room(make: Make) -> None:
    """G5, G22. Fault: the interrupted call or another thread has used up the shard's share when a deferred timer is
    accepted, and the timer is dropped while half of the registry is free."""

    def prepare(registry: ShardedRegistry) -> list[str]:
        names = one_of_each(registry)
        tick(registry, names[1])
        return names

    def reentrant(registry: ShardedRegistry, names: list[str]) -> None:
        tick(registry, names[1])

    def call(registry: ShardedRegistry, names: list[str]) -> object:
        return tick(registry, names[1])

    for registry, _, _, where in at_every_line(partial(make, max_pending=4), prepare, call, reentrant):
        assert registry.stats() == Stats(timers=3, accepted=3), where

    def other(registry: ShardedRegistry, names: list[str]) -> None:
        elsewhere(partial(tick, registry, names[1]))

    def interrupted(registry: ShardedRegistry, names: list[str]) -> None:
        within(registry, 1, lambda: tick(registry, names[1]))

    for registry, _, _, where in at_every_line(partial(make, max_pending=3), prepare, interrupted, other):
        assert passes_through(partial(until_accepted, registry, 3)), where
        assert registry.stats() == Stats(timers=3, accepted=3), where


def until_accepted(registry: ShardedRegistry, count: int) -> None:
    pause = threading.Event()
    while registry.stats().accepted < count:
        pause.wait(0.001)  # no event tells that the thread of `elsewhere` has ended


@pytest.mark.parametrize("shards", [1, 3])
def test_a_full_registry_refuses_a_reentrant_timer_at_the_call(make: Make, shards: int) -> None:
    """G22. Fault: re-entrant calls get more handles than the registry has room for, and their timers are dropped
    later."""
    registry = make(shards=shards, max_pending=4)
    name = one_of_each(registry)[0]
    for _ in range(3):
        tick(registry, name)
    refused: list[str] = []

    def finalizer() -> None:
        for _ in range(3):
            try:
                tick(registry, name)
            except RegistryFull as exc:
                refused.append(str(exc))

    within(registry, 0, finalizer)
    assert [text.split(".")[0] for text in refused] == [
        "The registry holds 4 timers and messages, and 1 more would pass max_pending=4"
    ] * 2
    assert registry.stats() == Stats(timers=4, accepted=4)


def test_the_bound_is_exact_while_threads_fill_and_empty_the_registry(make: Make) -> None:
    """G22. Fault: room is given to two shards, or is missing while it moves from one shard to another.

    There are as many threads as `max_pending` allows timers, and each has one timer at most: so none is ever refused.
    """
    bound = 4
    registry = make(shards=3, max_pending=bound)
    names = cids(registry, 2)
    most = 0
    over = threading.Event()

    def work(number: int) -> None:
        for step in range(300):
            cid = names[(number + step) % 3][step % 2]
            assert tick(registry, cid).cancel()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, pending(registry))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run_threads(*(partial(work, number) for number in range(bound)))
    finally:
        over.set()
        watcher.join(PATIENCE)
    assert most <= bound
    assert sum(shares(registry)) == bound
    assert registry.stats() == Stats(accepted=300 * bound, cancelled=300 * bound)


def test_threads_that_only_add_reach_max_pending_exactly(make: Make) -> None:
    """G22. Fault: two threads take the same free place; or the last places are refused because no shard has them."""
    registry = make(shards=5, max_pending=103)
    names = cids(registry, 4)
    accepted = [0] * 6

    def fill(number: int) -> None:
        for step in range(60):
            with suppress(RegistryFull):
                tick(registry, names[(number * step) % 5][step % 4])
                accepted[number] += 1

    run_threads(*(partial(fill, number) for number in range(6)))
    assert sum(accepted) == pending(registry) == 103
    assert registry.stats() == Stats(timers=103, accepted=103)


def test_room_taken_while_shares_are_moved_is_not_given_twice(make: Make) -> None:
    """G22. Fault: the free room is counted shard by shard, and places taken during the count are given a second time.

    At every line of a `schedule_event` whose shard has used up its share, another thread takes the only free place.
    """

    def prepare(registry: ShardedRegistry) -> list[str]:
        names = one_of_each(registry)
        for cid in (names[0], names[0], names[1]):
            tick(registry, cid)
        return names

    def other(registry: ShardedRegistry, names: list[str]) -> None:
        def take() -> None:
            with suppress(RegistryFull):
                tick(registry, names[2])

        elsewhere(take)

    def call(registry: ShardedRegistry, names: list[str]) -> object:
        return tick(registry, names[0])

    for registry, _, result, where in at_every_line(partial(make, shards=3, max_pending=4), prepare, call, other):
        assert passes_through(partial(until_accepted, registry, 4)), where
        assert pending(registry) == 4, f"{result!r} at {where}"
        assert sum(shares(registry)) == 4, where


# -- calls that are one step for all shards ------------------------------------------------------------------------


def subscribed_in_all(registry: ShardedRegistry) -> list[str]:
    """Subscribe a conversation of each shard to `t`, and start the thread of every shard."""
    names = one_of_each(registry)
    for cid in names:
        subscribe(registry, cid)
        tick(registry, cid)
    return names


def publish_to_all(registry: ShardedRegistry, names: list[str]) -> int:
    return registry.publish("t", "message")


def test_a_close_inside_publish_keeps_the_message_atomic(make: Make) -> None:
    """G15, G24. Fault: the first shard has accepted the message when the second refuses it: the call raises, but it has
    changed the registry."""

    def close(registry: ShardedRegistry, names: list[str]) -> None:
        registry.close(0)

    for registry, _, result, where in at_every_line(partial(make, shards=3), subscribed_in_all, publish_to_all, close):
        accepted = 0 if isinstance(result, RegistryClosed) else result
        assert accepted in (0, 3), where
        assert check_ledger(registry).accepted == 3 + accepted, where


@pytest.mark.parametrize("what", ["close", "reset_state"])
def test_a_racing_close_or_reset_keeps_a_message_atomic(make: Make, what: str) -> None:
    """G7, G18, G24. Fault: one shard accepts the message before the close or reset, and another shard after it.

    At every line of the publication another thread closes or resets the registry.
    """

    def action(registry: ShardedRegistry, names: list[str]) -> None:
        elsewhere(getattr(registry, what))

    for registry, _, result, where in at_every_line(partial(make, shards=3), subscribed_in_all, publish_to_all, action):
        assert passes_through(registry.close), where
        accepted = 0 if isinstance(result, RegistryClosed) else result
        assert accepted in (0, 3), where
        assert check_ledger(registry).accepted == 3 + accepted, where


def test_publish_misses_no_subscriber_during_a_handover(make: Make) -> None:
    """G16. Fault: publish asks the shards one after the other for subscribers. It sees neither the subscriber that
    comes nor the one that then leaves, though at every instant one of them was there."""
    for comes, goes in ((0, 1), (1, 0)):

        def prepare(registry: ShardedRegistry, goes: int = goes) -> list[str]:
            names = one_of_each(registry)
            subscribe(registry, names[goes])
            for cid in names:
                tick(registry, cid)  # starts the thread
            return names

        def hand_over(registry: ShardedRegistry, names: list[str], comes: int = comes, goes: int = goes) -> None:
            def swap() -> None:
                subscribe(registry, names[comes])
                unsubscribe(registry, names[goes])

            elsewhere(swap)

        def call(registry: ShardedRegistry, names: list[str]) -> int:
            return registry.publish("t", "message")

        for _, _, result, where in at_every_line(make, prepare, call, hand_over):
            assert result >= 1, f"no subscriber was found at {where}"


def test_racing_publications_and_registry_wide_calls_do_not_deadlock(make: Make) -> None:
    """Fault: two calls take the same shards in different orders."""
    registry = make(shards=4)
    names = one_of_each(registry)
    # Two topics whose shards became holders in opposite orders.
    for cid in names:
        subscribe(registry, cid, "up")
    for cid in reversed(names):
        subscribe(registry, cid, "down")

    def publish(topic: str) -> None:
        for number in range(150):
            registry.publish(topic, number)

    def install() -> None:
        for _ in range(150):
            registry.install_dispatch(lambda cid, event: None)

    run_threads(partial(publish, "up"), partial(publish, "down"), install)
    assert registry.settle(PATIENCE)
    assert registry.stats().delivered == 2 * 150 * 4


class Recorded:
    """Replace a shard's lock: record the order in which a thread takes several of them."""

    def __init__(self, inner: Any, index: int, taken: list[int]) -> None:
        self.inner, self.index, self.taken = inner, index, taken

    def acquire(self, *arguments: Any) -> bool:
        self.taken.append(self.index)
        return bool(self.inner.acquire(*arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "what", ["publish", "install_dispatch", "reset_state", "close", "a timer in a full shard", "settle"]
)
def test_several_locks_are_taken_in_the_order_of_the_shards(make: Make, what: str) -> None:
    """Fault: a call takes the locks in an order of its own, such as that in which the shards came to hold a topic."""
    registry = make(shards=4, max_pending=8)
    names = one_of_each(registry)
    for cid in reversed(names):
        subscribe(registry, cid)
    for _ in range(2):
        tick(registry, names[2])
    taken: list[int] = []
    for index, shard in enumerate(registry._shards):
        recorded: Any = Recorded(shard.core.lock, index, taken)
        shard.core.lock = recorded
    match what:
        case "publish":
            registry.publish("t", "message")
        case "a timer in a full shard":
            tick(registry, names[2])
        case "settle":
            registry.settle(PATIENCE)
        case "close":
            assert registry.close(PATIENCE)
        case _:
            OPERATIONS[what](registry, names[0])
    assert len(taken) >= 4
    assert taken == [0, 1, 2, 3] * (len(taken) // 4)


@pytest.mark.parametrize("what", ["reset_state", "close", "install_dispatch"])
def test_no_lock_is_ever_replaced(make: Make, what: str) -> None:
    """Fault: a lock is replaced while a thread waits for it or holds it, and two threads change a shard together."""
    registry = make(shards=3)
    for cid in one_of_each(registry):
        tick(registry, cid)
        subscribe(registry, cid)
    before = [(shard.core, shard.core.lock, shard.core.release) for shard in registry._shards]
    shards = registry._shards
    if what == "close":
        registry.close()
    else:
        OPERATIONS[what](registry, "c1")
    assert registry._shards is shards
    assert [(shard.core, shard.core.lock, shard.core.release) for shard in shards] == before


# -- waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["settle", "join"])
def test_waiting_includes_work_that_shards_send_to_each_other(make: Make, which: str) -> None:
    """Fault: `settle` and `join` wait for one shard after the other, and miss the work that a later shard sends to an
    earlier one."""
    registry = make(shards=3)
    names = one_of_each(registry)
    hops: list[int] = []

    def dispatch(cid: str, event: Event) -> None:
        hops.append(event.payload)
        if event.payload < 200:
            # backwards, so that it goes to a shard that was found idle
            target = names[(names.index(cid) - 1) % 3]
            tick(registry, target, 0, ("hop", event.payload + 1))

    registry.install_dispatch(dispatch)
    tick(registry, names[2], 0, ("hop", 0))
    assert getattr(registry, which)(PATIENCE)
    assert hops == list(range(201))
    assert registry.stats() == Stats(accepted=201, delivered=201)


def test_waiting_lasts_while_a_handler_may_send_to_an_idle_shard(make: Make) -> None:
    """Fault: as above, with every step controlled: shard 0 is idle when it is asked, and then shard 1 sends to it."""
    registry = make(shards=2)
    names = one_of_each(registry)
    entered, release, second = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def dispatch(cid: str, event: Event) -> None:
        if cid == names[1]:
            entered.set()
            release.wait(PATIENCE)
            tick(registry, names[0], 0, "sent")
        else:
            second.wait(PATIENCE)
            order.append("delivered")

    registry.install_dispatch(dispatch)
    tick(registry, names[1], 0)
    assert entered.wait(PATIENCE)

    def wait() -> None:
        assert registry.settle(PATIENCE)
        order.append("settled")

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    release.set()
    second.set()
    waiter.join(PATIENCE)
    assert order == ["delivered", "settled"]


def test_join_waits_for_the_timers_of_every_shard_and_settle_for_none(make: Make) -> None:
    """Fault: `join` counts the timers of one shard only, or `settle` waits for timers that are not due."""
    registry = make(shards=8)
    names = one_of_each(registry)
    handles = [tick(registry, cid) for cid in names]
    assert registry.settle(PATIENCE)
    assert not registry.join(0.05)
    assert not registry.join(0)
    for handle in handles[:-1]:
        handle.cancel()
    assert not registry.join(0.01)
    handles[-1].cancel()
    assert registry.join(0)


@pytest.mark.parametrize("which", ["settle", "join"])
def test_waiting_from_the_thread_of_any_shard_raises(make: Make, which: str) -> None:
    """G24. Fault: a handler of one shard waits for the others, and for itself last."""
    registry = make(shards=3)
    names = one_of_each(registry)
    raised: list[str] = []

    def dispatch(cid: str, event: Event) -> None:
        try:
            getattr(registry, which)()
        except RuntimeError as exc:
            raised.append(str(exc))

    registry.install_dispatch(dispatch)
    for cid in names:
        tick(registry, cid, 0)
    assert registry.settle(PATIENCE)
    assert raised == [
        f"{which}() was called from inside a delivery and would wait for itself. Return first."
    ] * 3  # fmt: skip


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_closing_from_a_delivery_of_any_shard_waits_for_none(make: Make, shard: int) -> None:
    """G24. Fault: the close waits for the handlers of the other shards, and one of them may wait for this one."""
    registry = make(shards=3)
    names = one_of_each(registry)
    entered, closed = threading.Event(), threading.Event()
    results: list[bool] = []

    def dispatch(cid: str, event: Event) -> None:
        if event.name == "close":
            assert entered.wait(PATIENCE)
            results.append(registry.close(PATIENCE))
            closed.set()
        elif event.name == "wait":
            entered.set()
            assert closed.wait(PATIENCE)

    registry.install_dispatch(dispatch)
    tick(registry, names[(shard + 1) % 3], 0, "wait")
    tick(registry, names[shard], 0, "close")
    assert closed.wait(5), "the close waits for a handler that waits for it"
    assert results == [False]
    assert registry.close(PATIENCE)
    assert registry.stats() == Stats(accepted=2, delivered=2)


# -- fork ----------------------------------------------------------------------------------------------------------

SPEC: Final = "sharded://?shards=3"

_FORK: Final = """
registry = make(max_pending=10)
heard = []
registry.install_dispatch(lambda cid, event: heard.append((os.getpid(), event.name)))
shards = registry._shards
names, number = {}, 0
while len(names) < 3:
    names.setdefault(hash(f"c{number}") % 3, f"c{number}")
    number += 1
def tick(shard, delay=3_600_000, name="tick"):
    return registry.schedule_event(cid=names[shard], instance_id="main", delay_ms=delay, event=name)
def child(body):
    "Run body in a forked child and print its result."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "it raised"
        try:
            text = repr(body())
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    print(read_all(reader, 20))
    os.waitpid(pid, 0)
"""


def forked(body: str) -> Sequence[str]:
    return run_script(SPEC, {}, _FORK + body).splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_new_shards_and_the_whole_max_pending() -> None:
    """G25. Fault: the shards of the child do not know each other, or still know the parent's; or the room that the
    parent used is missing in the child."""
    assert forked("""
for _ in range(9):
    tick(1)
def look():
    siblings = {id(shard.core.group) for shard in shards}
    shares = [shard.core.engine.max_pending for shard in shards]
    fresh = shards[0].core.group
    cross = []
    def reentrant():
        cross.append(fresh.is_reentrant())
        tick(2)
    shards[0].core.run_locked(reentrant)
    for _ in range(9):
        tick(2)
    try:
        tick(0)
    except stube.RegistryFull:
        cross.append("full")
    return len(siblings), len(fresh.held_by_me) >= 3, sum(shares), cross, registry.stats().timers
child(look)
print(registry.stats().timers)
child(lambda: (registry.stats().timers, registry.settle(10), tick(0, 0), registry.settle(10), len(heard))[-1])
registry.close()
""") == ["(1, True, 10, [True, 'full'], 10)", "9", "1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("what", ["close", "reset_state"])
def test_a_fork_inside_a_close_or_reset_leaves_the_child_usable(what: str) -> None:
    """G25. Fault: the parent's call continues on the child's shards: after a close, some of them are closed."""
    assert forked(f"""
for shard in range(3):
    tick(shard)
core, pids = shards[0].core, []
reset = core.engine.{"close" if what == "close" else "reset"}
class Engine(type(core.engine)):
    __slots__ = ()
    def {"close" if what == "close" else "reset"}(self):
        if not pids:
            reader, writer = os.pipe()
            pids.append((os.fork(), reader, writer))
        return super().{"close" if what == "close" else "reset"}()
core.engine.__class__ = Engine
registry.{what}()
pid, reader, writer = pids[0]
if pid == 0:
    for shard in range(3):
        tick(shard)
    os.write(writer, repr(([shard.core.engine.closed for shard in shards], registry.stats().timers)).encode())
    os._exit(0)
os.close(writer)
print(read_all(reader, 20))
os.waitpid(pid, 0)
registry.close()
""") == ["([False, False, False], 3)"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_inside_a_schedule_that_needs_room_leaves_the_child_usable() -> None:
    """G25. Fault: the child makes room in its own shards and tries the full shard of the parent again, without end."""
    assert forked("""
core = shards[1].core
class Engine(type(core.engine)):
    __slots__ = ()
    def schedule(self, *arguments):
        global pid
        if pid is None:
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
        return super().schedule(*arguments)
import signal
pid = 0
while core.engine.pending() < core.engine.max_pending:
    tick(1)
before = registry.stats().timers
core.engine.__class__, pid = Engine, None
tick(1)
if pid == 0:
    os._exit(registry.stats().timers)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), registry.stats().timers - before)
registry.close()
""") == ["1 1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_calls_deferred_before_a_fork_run_only_in_the_parent() -> None:
    """G25. Fault: the child runs the calls that the parent had deferred before the fork: its registry is not empty, and
    a timer fires twice."""
    assert forked("""
pids = []
def finalizer():
    registry.subscribe(cid=names[0], instance_id="main", topic="t", event="said")
    tick(1)
    reader, writer = os.pipe()
    pids.append((os.fork(), reader, writer))
shards[0].core.run_locked(finalizer)
pid, reader, writer = pids[0]
if pid == 0:
    os.write(writer, repr((registry.stats().subscriptions, registry.stats().timers)).encode())
    os._exit(0)
os.close(writer)
print(read_all(reader, 20))
os.waitpid(pid, 0)
print((registry.stats().subscriptions, registry.stats().timers))
registry.close()
""") == ["(0, 0)", "(1, 1)"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_forked_while_every_shard_is_locked_is_usable() -> None:
    """G25. Fault: the child waits for a lock whose holder does not exist in it."""
    assert forked("""
inside, go_on = threading.Barrier(4), threading.Event()
def hold(shard):
    shard.core.run_locked(lambda: (inside.wait(20), go_on.wait(20)))
threads = [threading.Thread(target=hold, args=(shard,)) for shard in shards]
for thread in threads:
    thread.start()
inside.wait(20)
def use():
    for shard in range(3):
        tick(shard, 0)
        registry.subscribe(cid=names[shard], instance_id="main", topic="t", event="said")
    registry.publish("t", 1)
    registry.install_dispatch(lambda cid, event: None)
    settled = registry.settle(10)
    registry.reset_state()
    return settled, registry.stats().delivered, registry.close(10)
child(use)
go_on.set()
for thread in threads:
    thread.join(20)
tick(0, 0, "parent")
print(registry.settle(20), heard == [(os.getpid(), "parent")])
registry.close()
""") == ["(True, 6, True)", "True True"]
