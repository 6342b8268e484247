"""Chaos: the backends are whole after it, and it names the fault of each broken registry."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from typing_extensions import override

import stube
from stube import Backend, ConversationInfo, Dispatch, Event, RegistryFull, Stats, TimerHandle
from stube.testing._chaos.audit import Books, differences
from stube.testing._chaos.failures import Failures as Complaints
from stube.testing._chaos.rounds import ChaosFailed, ChaosFigures, chaos
from stube.testing._history.recorder import RecordedRegistry
from stube_backends.engine import Deliverer, Failures, OnError, ThreadDriver
from stube_backends.engine._failures import log
from stube_backends.memory import MemoryRegistry
from tools import soak

INSTALLED = {one.name for one in stube.available_backends()}
BACKENDS = [name for name in ("memory", "sharded", "asyncio") if name in INSTALLED]
SEEDS = range(6)  # with and without resets, with little room, and one that closes while threads run


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_whole_after_the_chaos(backend: str, seed: int) -> None:
    """Fault: any state that is changed outside of its lock, counted twice or not at all, or left behind."""
    figures = chaos(backend, seed=seed)
    assert figures.rounds == 1
    if seed % 5 != 4:  # chance decides how far it comes before it closes
        assert figures.operations > 1_000
        assert figures.deliveries > 50
        assert figures.failures > 0


class Faulty(MemoryRegistry):
    """A registry with a fault that happens at every n-th chance, often enough for one round."""

    def __init__(self, **options: Any) -> None:
        self.count = itertools.count(1)
        super().__init__(**options)

    def every(self, number: int) -> bool:
        return next(self.count) % number == 0

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        super().install_dispatch(self.altered(dispatch))

    def altered(self, dispatch: Dispatch) -> Dispatch:
        """What is called in place of the dispatch that was installed."""
        return dispatch


class Losing(Faulty):
    """Loses a delivery and counts it."""

    @override
    def altered(self, dispatch: Dispatch) -> Dispatch:
        return lambda cid, event: None if self.every(5) else dispatch(cid, event)


class Miscounting(Faulty):
    """Counts one failure as a success; the ledger balances."""

    @override
    def stats(self) -> Stats:
        stats = super().stats()
        return replace(stats, failed=stats.failed - 1, delivered=stats.delivered + 1) if stats.failed else stats


class Unbalanced(Faulty):
    """Says that it accepted one more than it did."""

    @override
    def stats(self) -> Stats:
        stats = super().stats()
        return replace(stats, accepted=stats.accepted + 1)


class Negative(Faulty):
    """Has less than nothing queued at a moment."""

    @override
    def stats(self) -> Stats:
        stats = super().stats()
        return replace(stats, queued=-1) if self.every(50) else stats


class Undead(Faulty):
    """Sometimes says that it cancelled a timer, and has not."""

    @override
    def cancel_timer(self, timer: Any) -> bool:
        return True if self.every(5) else super().cancel_timer(timer)


class Overcounting(Faulty):
    """Counts a timer too many when it cancels those of a conversation."""

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return super().cancel_timers(cid, instance_id=instance_id) + self.every(5)


class Forgetful(Faulty):
    """Sometimes overlooks the timers of a conversation."""

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return 0 if self.every(3) else super().cancel_timers(cid, instance_id=instance_id)


class Parallel(Faulty):
    """Does not wait for the end of a delivery before it begins the next."""

    @override
    def altered(self, dispatch: Dispatch) -> Dispatch:
        def deliver(cid: str, event: Event) -> None:
            thread = threading.Thread(target=self.deliver_quietly, args=(dispatch, cid, event), daemon=True)
            thread.start()
            if not self.every(3):
                thread.join()

        return deliver

    @staticmethod
    def deliver_quietly(dispatch: Dispatch, cid: str, event: Event) -> None:
        try:
            result = cast(Any, dispatch)(cid, event)
            if result is not None:
                result.close()  # a coroutine
        except BaseException:  # noqa: BLE001
            pass


class Doubling(Faulty):
    """Sometimes delivers a message twice."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        if self.every(7):
            super().publish(topic, msg)
        return super().publish(topic, msg)


class Inventing(Faulty):
    """Sometimes delivers a message that no call has sent."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        return super().publish(topic, "new" if self.every(20) else msg)


class Hasty(Faulty):
    """Its timers begin after half of their delay."""

    @override
    def schedule_event(self, *, delay_ms: float, **arguments: Any) -> TimerHandle:
        return super().schedule_event(delay_ms=delay_ms / 2, **arguments)


class Direct(Faulty):
    """Delivers timers without delay on the caller's stack."""

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> TimerHandle:
        handle = super().schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        if delay_ms == 0 and handle.cancel():
            result = self._driver.core.dispatch(cid, Event(instance_id, *event))
            if isinstance(result, Coroutine):
                result.close()  # else Python warns of it, in whatever test runs then
        return handle


class Generous(Faulty):
    """Sometimes hands out a baton twice."""

    last: Any = None

    @override
    def pending_flow(self, cid: str, /) -> Any | None:
        taken, self.last = super().pending_flow(cid) or self.last, None
        if self.every(3):
            self.last = taken
        return taken


class HalfRefusing(Faulty):
    """Accepts a timer and then raises that it is full."""

    @override
    def schedule_event(self, **arguments: Any) -> TimerHandle:
        handle = super().schedule_event(**arguments)
        if self.every(10):
            raise RegistryFull("no room")
        return handle


class Leaking(Faulty):
    """Sometimes keeps the subscriptions of a conversation."""

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return 0 if self.every(2) else super().remove_subscriptions_for_cid(cid)


class LeakingInside(Faulty):
    """Keeps something in a container that only `sizes` shows."""

    @override
    def sizes(self) -> Mapping[str, int]:
        return {**super().sizes(), "rings": 3}


def reporting_with(failures: type[Failures], driver: ThreadDriver) -> ThreadDriver:
    """Let a driver report the exceptions of its deliveries in another way."""
    driver._deliverer = Deliverer(driver.core, failures(None), driver._clock)
    return driver


class Loud(Faulty):
    """Logs a failure twice."""

    class LoudFailures(Failures):
        @override
        def report(self, cid: str, event: Event, exc: BaseException, level: int = logging.ERROR) -> bool:
            log(logging.ERROR, "once more", exc_info=exc)
            return super().report(cid, event, exc)

    @override
    def _new_driver(self, dispatch: Dispatch) -> ThreadDriver:
        return reporting_with(self.LoudFailures, super()._new_driver(dispatch))


class Silent(Faulty):
    """Does not log a failure."""

    class SilentFailures(Failures):
        @override
        def report(self, cid: str, event: Event, exc: BaseException, level: int = logging.ERROR) -> bool:
            logger = logging.getLogger("stube")
            logger.disabled = True
            try:
                return super().report(cid, event, exc)
            finally:
                logger.disabled = False

    @override
    def _new_driver(self, dispatch: Dispatch) -> ThreadDriver:
        return reporting_with(self.SilentFailures, super()._new_driver(dispatch))


class Secretive(Faulty):
    """Never calls `on_error`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "on_error": None})


class Staying(Faulty):
    """Leaves a thread behind."""

    over = threading.Event()

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        threading.Thread(target=self.over.wait, name="a thread that stays", daemon=True).start()
        return super().close(timeout)


class Hanging(Faulty):
    """An operation that never returns."""

    over = threading.Event()

    @override
    def unsubscribe(self, **arguments: Any) -> int:
        self.over.wait()
        return 0


class Restless(Faulty):
    """Never settles."""

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return False


class Unclosing(Faulty):
    """Says that something did not stop."""

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        return super().close(timeout) and False


class Waiting(Faulty):
    """`settle` and `join` inside a delivery return immediately."""

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        try:
            return super().settle(timeout)
        except RuntimeError:
            return True

    @override
    def join(self, timeout: float | None = None) -> bool:
        try:
            return super().join(timeout)
        except RuntimeError:
            return True


class Hiding(Faulty):
    """Shows no running delivery."""

    @override
    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        return {name: replace(info, running=0) for name, info in super().inspect(cid).items()}


class Held(Faulty):
    """Operations wait for the delivery that runs."""

    def __init__(self, **options: Any) -> None:
        self.delivering = threading.RLock()
        super().__init__(**options)

    @override
    def altered(self, dispatch: Dispatch) -> Dispatch:
        def deliver(cid: str, event: Event) -> Any:
            with self.delivering:
                return cast(Any, dispatch)(cid, event)

        return deliver

    @override
    def schedule_event(self, **arguments: Any) -> TimerHandle:
        with self.delivering:
            return super().schedule_event(**arguments)

    @override
    def subscribe(self, **arguments: Any) -> None:
        with self.delivering:
            super().subscribe(**arguments)


class Raising(Faulty):
    """An operation raises what it must not."""

    @override
    def forget_pending_flow(self, cid: str, /) -> bool:
        raise LookupError("no such baton")


class Keeping(Faulty):
    """A reset keeps the timers of an hour, and counts them as dropped."""

    @override
    def reset_state(self) -> None:
        kept = [
            (cid, timer.instance_id, timer.event)
            for cid, info in self.inspect().items()
            for timer in info.timers
            if timer.remaining_ms > 10_000
        ]
        super().reset_state()
        for cid, instance_id, event in kept:
            self.schedule_event(cid=cid, instance_id=instance_id, delay_ms=3_600_000, event=event)


# Each fault with the texts that chaos must say about it.
FAULTS: dict[type[Faulty], tuple[str, ...]] = {
    Losing: ("delivered, and there were", "were delivered and"),
    Miscounting: ("failed, and there were",),
    Unbalanced: ("the ledger does not balance", "accepted, and there were"),
    Negative: ("the ledger says -1 queued.",),
    Undead: ("begins after its handle's cancel() has returned True",),
    Overcounting: ("counted by cancels", "too many."),
    Forgetful: ("the ledger still says ", " timers.", "inspect() still shows", "containers that are not empty: "),
    Parallel: ("G1: ",),
    Doubling: ("G16: ", "is its second."),
    Inventing: ("no call has sent that.",),
    Hasty: ("G9: ", "is early."),
    Direct: ("G3: ",),
    Generous: ("G8: ", "was taken twice."),
    HalfRefusing: ("G15: schedule_event raised, and timer",),
    Leaking: ("subscriptions() still shows {'",),
    LeakingInside: ("containers that are not empty: {'rings': 3}.",),
    Loud: ("was logged 2 times",),
    Silent: ("was logged 0 times",),
    Secretive: ("was handed to on_error 0 times",),
    Staying: ("threads that outlived the registry: a thread that stays",),
    Hanging: ("hangs:", "self.over.wait()"),
    Restless: ("the registry does not settle after the last operation: ",),
    Unclosing: ("close() says that not everything has stopped",),
    Waiting: ("G24: ", "() inside a delivery did not raise."),
    Hiding: ("shows no running delivery, and was asked by one.",),
    Held: ("G21: no operation of worker",),
    Raising: ("raised:", "LookupError: no such baton"),
    Keeping: ("accepted, and there were",),
}


def faulty(*, fault: str, on_error: OnError | None = None, max_pending: int | None = 1_000_000) -> Backend:
    """Make one of the registries above."""
    (kind,) = (one for one in FAULTS if one.__name__ == fault)
    return kind(on_error=on_error, max_pending=max_pending)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_and_named(fault: type[Faulty]) -> None:
    """Fault: chaos that any registry survives, because a book is not kept or not compared."""
    told = ""
    for seed in (10, 1, 6, 3, 12, 11):  # the even ones do not reset, so there the fates of all deliveries are known
        try:
            chaos(f"{__name__}:faulty", {"fault": fault.__name__}, seed=seed, patience=2)
        except ChaosFailed as exc:
            told = str(exc)
            assert told.startswith(f"after the chaos of seed {seed} this is not as it must be:\n")
            if all(part in told for part in FAULTS[fault]):
                return
    pytest.fail(f"it is not said what is wrong, but: {told or 'nothing'}")


def told_of(fault: type[Faulty], seed: int) -> str:
    """Return what chaos says about a faulty registry."""
    with pytest.raises(ChaosFailed) as raised:
        chaos(f"{__name__}:faulty", {"fault": fault.__name__}, seed=seed, patience=2)
    return str(raised.value)


def test_rounds_that_close_early_are_audited_as_well() -> None:
    """Fault: the rounds that close, each fifth, compare nothing."""
    assert "handed to on_error" in told_of(Secretive, seed=4)  # of an error, or of a coroutine, whichever came
    assert "accepted, and there were" in told_of(Unbalanced, seed=4)


class Watched(MemoryRegistry):
    """Records which operations are called, and whether from inside a delivery."""

    def __init__(self, **options: Any) -> None:
        self.delivering = threading.local()
        super().__init__(**options)

    @override
    def __getattribute__(self, name: str) -> Any:
        if name in OPERATIONS:
            inside = getattr(object.__getattribute__(self, "delivering"), "now", False)
            called.add((name, inside))
        return object.__getattribute__(self, name)

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        def deliver(cid: str, event: Event) -> Any:
            self.delivering.now = True
            try:
                return cast(Any, dispatch)(cid, event)
            finally:
                self.delivering.now = False

        super().install_dispatch(deliver)


OPERATIONS = {name for name in dir(stube.Registry) if not name.startswith("_")} | {"stats", "inspect", "settle", "join"}
called: set[tuple[str, bool]] = set()


def watched(*, on_error: OnError | None = None, max_pending: int | None = 1_000_000) -> Backend:
    """Make the registry above."""
    return Watched(on_error=on_error, max_pending=max_pending)


def test_every_operation_is_called_by_threads_and_by_handlers() -> None:
    """Fault: a workload that leaves an operation out, or never performs it inside a delivery."""
    called.clear()
    wanted = {(name, inside) for name in OPERATIONS for inside in (False, True)}
    for seed in range(1, 80, 2):  # two or three rounds suffice; a reset by a handler is the rarest
        chaos(f"{__name__}:watched", seed=seed)
        if called == wanted:
            break
    assert called == wanted


def test_a_virtual_clock_is_refused() -> None:
    """Fault: on a registry that delivers on its callers' stack every delivery would be accused, or none would come."""
    with pytest.raises(ValueError, match="virtual clock") as raised:
        chaos("virtual")
    assert str(raised.value) == "Chaos needs a registry that delivers by itself, and this one has a virtual clock."


def test_the_process_is_as_it_was_afterwards() -> None:
    """Fault: chaos takes the log away for good, or leaves the interpreter switching threads all the time."""
    logger = logging.getLogger("stube")
    before = (list(logger.handlers), logger.propagate, logger.level, sys.getswitchinterval(), threading.active_count())
    chaos(seed=1, threads=4, operations=50)
    told_of(Secretive, seed=5)
    after = (list(logger.handlers), logger.propagate, logger.level, sys.getswitchinterval(), threading.active_count())
    assert after == before


def test_figures_are_added_up_and_told() -> None:
    """Fault: the sum of many rounds is that of the last one."""
    total = ChaosFigures(1, 7000, 1500, 20) + ChaosFigures(1, 500, 3, 1)
    assert total == ChaosFigures(2, 7500, 1503, 21)
    assert str(total) == "2 rounds, 7,500 operations, 1,503 deliveries, 21 of them made to fail"


# The audit


class Audited:
    """A recorded registry with what the audit needs to know of its handlers."""

    def __init__(self, handler: Callable[[str, Event], object] = lambda cid, event: None) -> None:
        self.failures = Complaints()
        self.registry = RecordedRegistry(stube.create_registry("memory", on_error=self.failures.on_error))
        self.registry.install_dispatch(self.failures.watched(handler))

    def schedule(self, name: str, identity: str, delay_ms: float = 0) -> TimerHandle:
        return self.registry.schedule_event(cid="c1", instance_id="i", delay_ms=delay_ms, event=(name, identity))

    def books(self) -> Books:
        return Books(self.registry.history(), self.failures.coroutines)

    def differences(self) -> list[str]:
        return [*differences(self.books(), self.registry.registry), *self.failures.differences()]


def test_the_audit_counts_every_call_and_delivery() -> None:
    """Fault: a figure that is not counted compares as 0 with 0."""

    def handle(cid: str, event: Event) -> None:
        if event.name == "fail":
            raise LookupError
        if event.name == "end":
            raise stube.ConversationEnded

    audited = Audited(handle)
    registry = audited.registry
    with audited.failures.listening():
        for number, name in enumerate(("pass", "fail", "end")):
            audited.schedule(name, f"t{number}")
        assert registry.join(30)
        handle_of_it = audited.schedule("never", "t3", 60_000)
        assert handle_of_it.cancel()
        assert not handle_of_it.cancel()
        audited.schedule("never", "t4", 60_000)
        assert registry.cancel_timers("c1") == 1
        registry.subscribe(cid="c1", instance_id="i", topic="t", event="pass")
        assert registry.publish("t", "m1") == 1
        assert registry.join(30)
        sizes: Mapping[str, int] = cast(Any, registry).sizes()
        assert audited.differences() == [
            "the ledger still says 1 subscriptions.",
            f"inspect() still shows {registry.inspect()}.",
            "subscriptions() still shows {'t': {('c1', 'i'): 'pass'}}.",
            f"containers that are not empty: { {name: size for name, size in sizes.items() if size} }.",
        ]
        assert registry.unsubscribe(cid="c1", instance_id="i") == 1
        assert audited.differences() == []
    books = audited.books()
    assert (len(books.history.calls), books.accepted_timers, books.targets, books.cancelled) == (11, 5, 1, 2)
    assert (books.begun, books.over, books.failed, books.delivered, books.resets) == (4, 4, 1, 3, 0)
    registry.close()


def test_the_audit_sees_a_coroutine_that_the_registry_cannot_await() -> None:
    """Fault: the registry's own error counts as one that no handler has raised, or is not missed."""

    async def nothing() -> None: ...

    audited = Audited(lambda cid, event: nothing())
    with audited.failures.listening():
        audited.schedule("due", "t1")
        assert audited.registry.join(30)
        assert audited.differences() == []
    audited.schedule("due", "t2")
    assert audited.registry.join(30)
    assert audited.differences() == [
        "G19: handlers returned 2 coroutines, and 1 errors were logged that no handler had raised."
    ]
    audited.registry.close()


def test_findings_are_bounded() -> None:
    """Fault: a registry that is always wrong fills the memory with sentences."""
    audited = Audited()
    for number in range(100):
        audited.registry.registry.schedule_event(cid="c1", instance_id="i", delay_ms=0, event=("due", f"t{number}"))
    assert audited.registry.join(30)
    assert len([one for one in audited.differences() if "no call has sent that." in one]) == 20
    audited.registry.close()


# The soak


def soaked(*arguments: str) -> tuple[int, str]:
    """Return the exit code of a soak and its output."""
    out = io.StringIO()
    return soak.main(arguments, out), out.getvalue()


def test_the_soak_leaves_chaos_out_on_a_virtual_clock() -> None:
    """Fault: a soak that leaves chaos out, or breaks off at a virtual clock."""
    code, said = soaked(
        "--backend", "virtual", "--backend", "memory", "--steps", "0", "--minutes", "0", "--chaos-minutes", "0.001"
    )  # fmt: skip
    virtual, memory, last = said.splitlines()
    assert (code, last) == (0, "No finding.")
    assert virtual == "virtual, chaos: left out, because a virtual clock delivers on its callers' threads."
    counted = r"1 rounds, [\d,]+ operations, [\d,]+ deliveries, [\d,]+ of them made to fail"
    assert re.fullmatch(rf"memory, chaos: {counted} in \d:\d\d, nothing wrong\.", memory)


def test_the_soak_serves_a_registry_that_needs_an_event_loop() -> None:
    """Fault: nothing serves a registry of asyncio, so its histories never settle."""
    code, said = soaked("--backend", "asyncio", "--steps", "0", "--minutes", "0.001", "--chaos-minutes", "0.001")
    histories, chaotic, last = said.splitlines()
    assert (code, last) == (0, "No finding.")
    assert histories.startswith("asyncio, histories: 1 histories, ")
    assert chaotic.startswith("asyncio, chaos: 1 rounds, ")


def test_a_finding_of_chaos_ends_the_soak_with_its_seed() -> None:
    """Fault: a finding without its seed or without what differs; or an exit code of 0."""
    spec = f"{__name__}:secretive"
    code, said = soaked("--backend", spec, "--steps", "0", "--minutes", "0", "--chaos-minutes", "1", "--seed", "10")
    assert code == 1
    assert f"A finding. {spec}: after the chaos of seed 10 this is not as it must be:\n  G19: the failure of " in said
    assert f"To try it again: --backend {spec} --steps 0 --minutes 0 --seed 10\n" in said
    assert "No finding." not in said


def secretive(*, on_error: OnError | None = None, max_pending: int | None = 1_000_000) -> Backend:
    """Make a registry that never calls `on_error`."""
    return Secretive(max_pending=max_pending)


def test_the_nightly_soak_is_the_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: CI soaks for half an hour, or a length that is given counts for nothing."""
    done: list[tuple[str, str, float]] = []
    for name in ("soak_the_programs", "soak_histories", "soak_chaos"):
        monkeypatch.setattr(soak, name, lambda spec, length, *_, name=name: done.append((name, spec, length)))
    backends = [name for name in ("memory", "virtual", "sharded", "asyncio") if name in INSTALLED]
    for arguments, steps, minutes, chaos_minutes in (
        ((), 200_000, 10, 10),
        (("--nightly",), 50_000, 2, 1),
        (("--nightly", "--steps", "7", "--chaos-minutes", "3"), 7, 2, 3),
    ):
        done.clear()
        assert soaked(*arguments) == (0, "No finding.\n")
        assert done == [
            *(("soak_the_programs", name, steps) for name in backends),
            *(("soak_histories", name, minutes / len(backends)) for name in backends),
            *(("soak_chaos", name, chaos_minutes) for name in backends),
        ]
