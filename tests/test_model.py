"""The model and the random programs: they find faults, print a program that shows each, and accuse no correct backend.

The broken registries are selected as a third party's would be: `tests.test_model:create_deaf`.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from typing_extensions import override

import stube
from stube.testing._harness import RegistryProxy, failures_unlogged
from stube.testing._model import model, random_programs
from stube.testing._model.differential import Comparer, Difference
from stube.testing._model.model import ANY_FIGURE, Model, OneOf
from stube.testing._model.programs import FIRST, Call, CancelHandle, Program, Raised, Stage
from stube.testing._model.random_programs import compare_programs, exact_programs, settled_programs, soak_programs
from stube_backends.engine import _serial


class Broken(RegistryProxy):
    """A registry with one fault, in front of a real one that it makes."""

    def __init__(self, behind: str, options: Mapping[str, Any]) -> None:
        super().__init__(stube.create_registry(behind, **options))


class Deaf(Broken):
    """A handle says that it has cancelled whenever it is asked."""

    @override
    def schedule_event(self, **arguments: Any) -> Any:
        handle = self.registry.schedule_event(**arguments)

        class Handle:
            def cancel(self) -> bool:
                handle.cancel()
                return True

        return Handle()


class Immortal(Broken):
    """Counts the timers that it should cancel, and cancels none."""

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        counted = self.registry.inspect(cid).get(cid, stube.ConversationInfo()).timers
        return sum(instance_id in (None, timer.instance_id) for timer in counted)


class Moving(Broken):
    """Subscribing again moves the instance to the end of the order."""

    @override
    def subscribe(self, **arguments: Any) -> None:
        self.registry.subscribe(**arguments)
        event = arguments.pop("event")
        self.registry.unsubscribe(**arguments)
        self.registry.subscribe(**arguments, event=event)


class Copying(Broken):
    """Delivers copies."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        count: int = self.registry.publish(topic, copy.copy(msg))
        return count


class Doubting(Broken):
    """Treats an empty flow id as none."""

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        if flow_id or flow_id is None or not isinstance(cid, str) or not cid:
            self.registry.put_pending_flow(cid, flow_id)


class Miscounting(Broken):
    """Counts on both sides one delivery too few, so that the ledger balances all the same."""

    @override
    def stats(self) -> stube.Stats:
        stats: stube.Stats = self.registry.stats()
        return replace(stats, accepted=max(0, stats.accepted - 1), delivered=max(0, stats.delivered - 1))


class Forgetful(Broken):
    """A refused publication has an effect: it removes the batons."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        try:
            count: int = self.registry.publish(topic, msg)
        except Exception:
            for cid in ("c1", "c2", "c3"):
                self.registry.forget_pending_flow(cid)
            raise
        return count


class Roomy(Broken):
    """Holds one timer more than it may."""

    def __init__(self, behind: str, options: Mapping[str, Any]) -> None:
        bound = options.get("max_pending", 1_000_000)
        super().__init__(behind, {**options, "max_pending": bound and bound + 1})


class Leaking(Broken):
    """Keeps the subscriptions of an instance that leaves a topic by name."""

    @override
    def unsubscribe(self, *, topic: str | None = None, **arguments: Any) -> int:
        count: int = self.registry.unsubscribe(**arguments, topic=topic)
        if topic is not None and count:
            self.registry.subscribe(**arguments, topic=topic, event="a")
        return count


class Unordered(Broken):
    """Delivers the later one of two timers due at one instant first, because each delay is a nanosecond shorter."""

    def __init__(self, behind: str, options: Mapping[str, Any]) -> None:
        super().__init__(behind, options)
        self._count = 0

    @override
    def schedule_event(self, *, delay_ms: float, **arguments: Any) -> Any:
        if delay_ms in (1, 5):
            self._count += 1
            delay_ms -= self._count * 1e-6
        return self.registry.schedule_event(delay_ms=delay_ms, **arguments)


BROKEN: list[type[Broken]] = [Deaf, Immortal, Moving, Copying, Doubting, Miscounting, Forgetful, Roomy, Leaking]


def create_broken(
    *, fault: str, behind: str = "virtual", max_pending: int | None = 1_000_000, on_error: Any = None
) -> stube.Backend:
    """Make a registry with one of the faults above."""
    broken: Broken = globals()[fault](behind, {"max_pending": max_pending, "on_error": on_error})
    return broken


class Eager(Model):
    """Another correct backend: it cancels the queued messages of a subscription together with the subscription."""

    capabilities = frozenset({"virtual_time", "common_topic_order", "one_instant_snapshot", "by_reference"})

    @override
    def _remove(self, removed: list[Any]) -> int:
        count = super()._remove(removed)
        for entry in self._waste():
            self._pending.remove(entry)
            self._cancelled += 1
        return count

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return super().settle()

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        return super().close()

    def __enter__(self) -> Eager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_eager(*, max_pending: int | None = 1_000_000, on_error: Any = None) -> stube.Backend:
    """Make one."""
    return cast("stube.Backend", Eager(max_pending=max_pending, on_error=on_error))


class Concurrent:
    """Another correct backend: two registries share the conversations and deliver at the same time."""

    capabilities = frozenset({"by_reference"})

    def __init__(self, max_pending: int | None, on_error: Any) -> None:
        self._local = threading.local()
        self._max_pending = max_pending
        self._parts = [stube.create_registry("memory", on_error=on_error) for _ in range(2)]

    def __enter__(self) -> Concurrent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of(self, cid: Any) -> stube.Backend:
        part: stube.Backend = self._parts[cid != "c1"]
        return part

    def _refuse(self, wanted: int) -> None:
        stats = self.stats()
        if self._max_pending is not None and stats.timers + stats.queued + wanted > self._max_pending:
            raise stube.RegistryFull("no room")

    def install_dispatch(self, dispatch: Any, /) -> None:
        def marked(cid: str, event: stube.Event) -> None:
            self._local.delivering = True
            try:
                dispatch(cid, event)
            finally:
                self._local.delivering = False

        for part in self._parts:
            part.install_dispatch(marked if callable(dispatch) else dispatch)

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        self._of(cid).put_pending_flow(cid, flow_id)

    def pending_flow(self, cid: str, /) -> Any:
        return self._of(cid).pending_flow(cid)

    def forget_pending_flow(self, cid: str, /) -> bool:
        return self._of(cid).forget_pending_flow(cid)

    def schedule_event(self, *, cid: str, **arguments: Any) -> Any:
        with stube.create_registry("virtual") as probe:
            probe.schedule_event(cid=cid, **arguments)  # to refuse wrong arguments before a full registry
        self._refuse(1)
        return self._of(cid).schedule_event(cid=cid, **arguments)

    def cancel_timers(self, cid: str, /, **arguments: Any) -> int:
        return self._of(cid).cancel_timers(cid, **arguments)

    def subscribe(self, *, cid: str, **arguments: Any) -> None:
        self._of(cid).subscribe(cid=cid, **arguments)

    def unsubscribe(self, *, cid: str, **arguments: Any) -> int:
        return self._of(cid).unsubscribe(cid=cid, **arguments)

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._of(cid).remove_subscriptions_for_cid(cid)

    def publish(self, topic: str, msg: Any, /) -> int:
        if isinstance(topic, str):
            self._refuse(len(self.subscriptions().get(topic, ())))
        return sum(part.publish(topic, msg) for part in self._parts)

    def subscriptions(self) -> dict[str, dict[tuple[str, str], stube.EventSpec]]:
        found: dict[str, dict[tuple[str, str], stube.EventSpec]] = {}
        for part in self._parts:
            for topic, subscribers in part.subscriptions().items():
                found.setdefault(topic, {}).update(subscribers)
        return found

    def reset_state(self) -> None:
        for part in self._parts:
            part.reset_state()

    def close(self, timeout: float | None = 5.0) -> bool:
        closed = [part.close(timeout) for part in self._parts]
        return all(closed)

    def settle(self, timeout: float | None = 5.0) -> bool:
        if getattr(self._local, "delivering", False):
            raise RuntimeError("inside a delivery")
        return all(
            part.settle(timeout) for part in (*self._parts, *self._parts)
        )  # twice, because one may add to the other

    def join(self, timeout: float | None = None) -> bool:
        assert getattr(self._local, "delivering", False), "no program waits for what is never due"
        raise RuntimeError("inside a delivery")

    def stats(self) -> stube.Stats:
        parts = [part.stats() for part in self._parts]
        names = stube.Stats.__dataclass_fields__
        return stube.Stats(**{name: sum(getattr(part, name) for part in parts) for name in names})

    def inspect(self, cid: str | None = None) -> dict[str, stube.ConversationInfo]:
        return {**self._parts[0].inspect(cid), **self._parts[1].inspect(cid)}


def create_concurrent(*, max_pending: int | None = 1_000_000, on_error: Any = None) -> stube.Backend:
    """Make one."""
    return cast("stube.Backend", Concurrent(max_pending, on_error))


def _broken(fault: type[Broken], behind: str) -> dict[str, Any]:
    return {"backend": "tests.test_model:create_broken", "fault": fault.__name__, "behind": behind}


def _length(program: str) -> int:
    """Count the lines of a program, without imports, blank lines, and the `settle` after every operation."""
    ignored = ("import", "from", "registry.settle()")
    return sum(bool(line) and not line.startswith(ignored) for line in program.splitlines())


@pytest.mark.parametrize(
    ("fault", "behind", "exactly"),
    [
        *((fault, "virtual", True) for fault in (*BROKEN, Unordered)),
        *((fault, "virtual", False) for fault in BROKEN),
        *((fault, "memory", False) for fault in (Immortal, Copying, Roomy)),
    ],
)
def test_a_fault_is_found_and_a_short_program_shows_it(fault: type[Broken], behind: str, exactly: bool) -> None:
    """Fault: a comparison that finds nothing; a program that is printed and does not show what was found, or shows
    it on a correct registry as well; one that is not made smaller."""
    spec = _broken(fault, behind)
    with pytest.raises(Difference) as found:
        compare_programs(spec, {}, exactly=exactly, examples=300)
    program = found.value.source
    assert repr(spec) in program
    assert program in str(found.value)
    assert _length(program) <= 16, program
    with pytest.raises((AssertionError, pytest.fail.Exception, stube.StubeError)):
        exec(program, {})
    exec(program.replace(repr(spec), repr(behind)), {})


@pytest.mark.parametrize(("spec", "exactly"), [("virtual", True), ("virtual", False), ("memory", False)])
def test_checks_and_printed_assertions_say_the_same(spec: str, exactly: bool) -> None:
    """Fault: a check whose source says something else than its values, so that a printed program misleads."""
    comparer = Comparer(spec, {}, exactly=exactly)
    programs = exact_programs if exactly else settled_programs

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
    )
    @given(programs(by_reference=True))
    def show(program: Program) -> None:
        transcript = comparer.transcript(program)
        try:
            exec(transcript, {})
        except AssertionError as exc:
            line = traceback.extract_tb(exc.__traceback__)[-1].lineno or 0
            pytest.fail(f"{transcript.splitlines()[line - 1]}\n\n{transcript}")

    with failures_unlogged():
        show()


@pytest.mark.parametrize(
    ("spec", "exactly"),
    [
        ("tests.test_model:create_eager", True),
        ("tests.test_model:create_eager", False),
        ("tests.test_model:create_concurrent", False),
    ],
)
def test_every_correct_backend_agrees_with_the_model(spec: str, exactly: bool) -> None:
    """Fault: a correct backend fails: one that serves conversations at once, or one that frees room earlier."""
    assert compare_programs(spec, {}, exactly=exactly, examples=100) > 3000


def test_the_same_programs_every_time_or_those_of_a_seed() -> None:
    """Fault: a run that cannot be repeated."""

    def performed(chance: int | None) -> int:
        return compare_programs("virtual", {}, exactly=True, examples=20, chance=chance)

    assert performed(None) == performed(None)
    assert performed(7) == performed(7)
    assert len({performed(chance) for chance in range(4)}) > 1


def test_the_model_and_the_engine_give_timers_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: an order differs after a turn (G27), which the small random programs come to only if two messages, and not
    32, give one."""
    monkeypatch.setattr(_serial, "IN_A_ROW", 2)
    monkeypatch.setattr(model, "IN_A_ROW", 2)
    assert soak_programs("virtual", {}, steps=2000, seed=5, progress=lambda done: None) >= 2000
    monkeypatch.setattr(model, "IN_A_ROW", 3)
    with pytest.raises(AssertionError, match="This program shows it"):
        soak_programs("virtual", {}, steps=10**6, seed=5, progress=lambda done: None)


def test_long_run_performs_its_operations_and_raises_differences() -> None:
    """Fault: it ends early, says nothing on the way, or loses what it finds."""
    said: list[int] = []
    done = soak_programs("virtual", {}, steps=6000, seed=3, progress=said.append)
    assert done >= 6000
    assert said == sorted(said)
    assert said[-1] == done
    assert len(said) > 1
    with pytest.raises(AssertionError, match="This program shows it"):
        soak_programs(_broken(Moving, "virtual"), {}, steps=10**6, seed=3, progress=said.append)


def test_the_model_permits_every_permitted_answer_and_no_other() -> None:
    """Fault: an answer that is permitted differs, or one that is not passes for it."""
    assert OneOf(1, 2) == 2
    assert OneOf(1, 2) == 1
    assert OneOf(1, 2) != 3
    assert ANY_FIGURE == 5
    assert ANY_FIGURE != -1
    assert Raised(stube.VirtualTimeError) == Raised(RuntimeError)
    assert Raised(RuntimeError) != Raised(stube.VirtualTimeError)


def test_message_of_a_removed_subscription_may_stay_queued() -> None:
    """Fault: the model frees at once what may stay, or keeps what must go."""
    model = Model(max_pending=1)
    model.subscribe(cid="c1", instance_id="i1", topic="t", event="a")
    model.publish("t", FIRST)
    with pytest.raises(stube.RegistryFull):
        model.publish("t", FIRST)
    model.unsubscribe(cid="c1", instance_id="i1")
    for queued in (0, 1):
        assert model.stats() == stube.Stats(accepted=1, queued=queued, cancelled=1 - queued)
        assert model.inspect() == {"c1": stube.ConversationInfo(queued=queued)}
    model.full = lambda: True
    with pytest.raises(stube.RegistryFull):
        model.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event="a")
    model.full = lambda: False
    model.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event="a")
    model.full = lambda: pytest.fail("asked although the timer alone fills the room")
    with pytest.raises(stube.RegistryFull):
        model.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event="a")
    model.settle()
    assert model.stats() == stube.Stats(accepted=2, delivered=1, cancelled=1)


def test_registry_that_never_settles_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a backend that hangs is waited for half a minute with every step of making the program smaller."""
    monkeypatch.setattr(random_programs, "Comparer", _impatient)
    with pytest.raises(Difference, match=r"registry\.settle\(\)"):
        compare_programs("tests.test_model:create_restless", {}, exactly=False, examples=10)


def _impatient(*arguments: Any, **options: Any) -> Comparer:
    comparer = Comparer(*arguments, **options)
    comparer.patience = 0.01
    return comparer


class Restless(Eager):
    """Never settles, and says so immediately."""

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return False


def create_restless(*, max_pending: int | None = 1_000_000, on_error: Any = None) -> stube.Backend:
    """Make one."""
    return cast("stube.Backend", Restless(max_pending=max_pending, on_error=on_error))


class Late(Broken):
    """Delivers a timer before the call that schedules it returns, as a delivery thread may do."""

    @override
    def schedule_event(self, **named: Any) -> Any:
        handle = self.registry.schedule_event(**named)
        with contextlib.suppress(RuntimeError):  # from inside a delivery
            self.registry.settle()
        return handle


def test_handles_are_counted_in_the_order_of_the_calls() -> None:
    """Fault: what a handler schedules takes the place of the timer that it is the delivery of, and a later cancel is of
    another timer on the model than on the backend."""

    def schedule(delay: int, event: str) -> Call:
        named = {"cid": "c1", "instance_id": "i", "delay_ms": delay, "event": event}
        return Call("schedule_event", named=tuple(named.items()))

    stage = Stage({"first": (schedule(10_000_000, "second"),)})
    with Late("memory", {"on_error": stage.on_error}) as stage.registry:
        stage.registry.install_dispatch(stage.dispatch)
        assert stage.perform(schedule(0, "first")) is None
        assert stage.perform(CancelHandle("c1", 0)) is False
        assert stage.perform(CancelHandle("c1", 1)) is True
        assert stage.perform(schedule(-1, "")) == Raised(ValueError)
        assert stage.perform(CancelHandle("c1", 2)) == Raised(IndexError)


def test_a_handle_that_is_about_to_come_is_waited_for() -> None:
    """Fault: a handler cancels its own timer before the call that scheduled it has returned the handle, and an error
    of these programs is taken for one of the backend."""
    stage = Stage({})
    coming = threading.Event()
    stage.handles["c1"].append(coming)
    answers: list[object] = []
    canceller = threading.Thread(target=lambda: answers.append(stage.perform(CancelHandle("c1", 0))))
    with stube.create_registry("memory") as registry:
        handle = registry.schedule_event(cid="c1", instance_id="i", delay_ms=10_000_000, event="e")
        canceller.start()
        stage.handles["c1"][0] = handle
        coming.set()
        canceller.join()
    assert answers == [True]
