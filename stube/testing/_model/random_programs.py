"""Random programs, as Hypothesis strategies over small pools of names, so that collisions are frequent.

A program is drawn whole, as data, and performed afterwards, unlike the rules of Hypothesis' state machines. So the
drawn program is the printed one, handlers are drawn like the top level, and programs are shrunk as data (`shrinking`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from math import inf, nan
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from stube import ConversationEnded, is_virtual
from stube.testing._harness import HOUR, create, failures_unlogged
from stube.testing._model.differential import Comparer, Difference
from stube.testing._model.programs import (
    FIRST,
    OWN,
    OWN_TOPIC,
    SECOND,
    Alias,
    Call,
    CancelHandle,
    InstallDispatch,
    Interrupt,
    Operation,
    Program,
    Raise,
    Unusual,
)

__all__ = ["compare_programs", "exact_programs", "settled_programs", "soak_programs"]

_INTERFERING: Final[tuple[Operation, ...]] = (
    Call("inspect"),
    Call("inspect"),
    Call("reset_state"),
    Call("reset_state"),
    InstallDispatch(2),
)
_SUPPRESSED: Final = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
)
# A value that is in a pool several times is drawn more often.
_CIDS: Final = ("c1", "c2", "c1", "c2", "c3")
_TOPICS: Final = ("t", "t", "u")
_NAMES: Final = ("a", "b", "a", "c")  # of events
_DELAYS: Final = (0, 1, 0, 1, 5, 0, 1, 5)
_RARE_DELAYS: Final = (-1, 2.5, 0.5, 1e-7, 134, 135, 1000, HOUR, 2**53, 1.7e308, 10**400)
_STEPS: Final = (1, 5, 0, 1, 5, 2.5, timedelta(milliseconds=1), 134, 1000, HOUR, -1)
_WRONG_NAMES: Final = (None, 7, b"c1", "")


def exact_programs(*, by_reference: bool) -> st.SearchStrategy[Program]:
    """Return programs for a virtual clock: every operation, also with wrong arguments; handlers may do anything.

    Args:
        by_reference: whether any object serves as a payload.
    """
    cids = st.sampled_from((*_CIDS, Alias("c1")))
    topics = st.sampled_from((*_TOPICS, Alias("t")))
    delays = _weighted(*[st.sampled_from(_DELAYS)] * 4, st.sampled_from(_RARE_DELAYS))
    payloads = _payloads(by_reference)

    def operations(whose: st.SearchStrategy[Any], *more: st.SearchStrategy[Operation]) -> st.SearchStrategy[Operation]:
        common = (*_operations(whose, topics, topics, delays, payloads), st.builds(InstallDispatch, st.integers(1, 2)))
        clock = (
            st.builds(Call, st.just("advance"), st.tuples(st.sampled_from(_STEPS))),
            st.sampled_from(
                (Call("settle"), Call("run_until_idle"), Call("join"), Call("join", (0.004,)), Call("next_due_ms"))
            ),
        )
        whole = st.sampled_from((Call("reset_state"), Call("subscriptions"), Call("stats"), Call("inspect")))
        rare = st.sampled_from((Call("close"), *_wrong_calls()))
        return _weighted(*common, *clock, clock[0], clock[0], clock[0], whole, rare, *more)

    raises = st.sampled_from([Raise(error) for error in (LookupError, ConversationEnded, Unusual, Interrupt)])
    return st.builds(
        Program,
        _program(operations(cids)),
        # Only handlers perform the operations that interfere with a delivery or inspect it.
        _handlers(
            operations(st.one_of(st.just(OWN), cids), *(st.just(operation) for operation in _INTERFERING)), raises
        ),
        _weighted(st.none(), st.none(), st.integers(1, 6)),
    )


def settled_programs(*, by_reference: bool) -> st.SearchStrategy[Program]:
    """Return programs that have the same result on every clock, if each operation is followed by `settle`.

    Delays are zero or too long to become due. A handler uses its own conversation only, and publishes on no topic that
    others subscribe to, because other conversations may be served at the same time. With a small `max_pending` no
    handler does anything, because then chance would decide which operation is refused.

    Args:
        by_reference: whether any object serves as a payload.
    """
    cids, topics = st.sampled_from(_CIDS), st.sampled_from(_TOPICS)
    delays = st.sampled_from((0, HOUR, -1, 2 * HOUR, 10**400))
    payloads = _payloads(by_reference)
    outside = (*_operations(cids, topics, topics, delays, payloads), st.builds(InstallDispatch, st.integers(1, 2)))
    own_topics = st.builds(
        lambda cid, event: _call("subscribe", cid=cid, instance_id="i1", topic=f"topic of {cid}", event=event),
        cids,
        st.sampled_from(_NAMES),
    )
    whole = st.sampled_from(
        (Call("subscriptions"), Call("inspect"), Call("stats"), Call("reset_state"), *_wrong_calls())
    )
    inside = _weighted(
        *_operations(st.just(OWN), st.one_of(st.just(OWN_TOPIC), topics), st.just(OWN_TOPIC), delays, payloads),
        st.sampled_from((Call("inspect", (OWN,)), Call("inspect", (OWN,)), Call("settle"), Call("join"))),
    )
    raises = st.sampled_from([Raise(error) for error in (LookupError, ConversationEnded, Unusual, SystemExit)])
    operations = _program(_weighted(*outside, own_topics, whole))
    roomy = st.builds(Program, operations, _handlers(inside, raises))
    return _weighted(roomy, roomy, st.builds(Program, operations, st.just({}), st.integers(1, 6)))


def compare_programs(
    spec: Any, options: Mapping[str, Any], *, exactly: bool, examples: int, chance: int | None = None
) -> int:
    """Compare a backend with the model in random programs. Return how many operations of the top level were performed.

    Args:
        spec: as `create_registry` takes it.
        options: those that the backend itself needs.
        exactly: compare everything, on a virtual clock; otherwise what holds when everything has settled.
        examples: how many programs.
        chance: a seed; None for the same programs every time.

    Raises:
        Difference: the backend differs from the model; it prints the smallest program that was found to show it.
    """
    with create(spec, **options) as probe:
        by_reference = "by_reference" in probe.capabilities
    comparer = Comparer(spec, options, exactly=exactly)
    programs = exact_programs if exactly else settled_programs

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=chance is None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=_SUPPRESSED,
    )
    @given(programs(by_reference=by_reference))
    def compare(program: Program) -> None:
        try:
            comparer.compare(program)
        except Difference as exc:
            found.append((program, exc))
            raise

    found: list[tuple[Program, Difference]] = []
    with failures_unlogged():
        try:
            (compare if chance is None else seed(chance)(compare))()
        except (Difference, Flaky):  # a difference that Hypothesis does not find again is a difference
            raise comparer.smallest(*found[0]) from None
    return comparer.performed


def soak_programs(
    spec: Any, options: Mapping[str, Any], *, steps: int, seed: int, progress: Callable[[int], None]
) -> int:
    """Compare a backend with the model in random programs until `steps` operations of the top level have been compared.

    Args:
        spec: as `create_registry` takes it.
        options: those that the backend itself needs.
        steps: how many operations at least.
        seed: another one gives other programs.
        progress: called now and then with the number of operations so far.

    Returns:
        How many operations were performed and compared.

    Raises:
        AssertionError: the backend differs from the model; it holds the smallest program that shows it.
    """
    with create(spec, **options) as probe:
        exactly = is_virtual(probe)
    done = rounds = 0
    while done < steps:
        # On a virtual clock the programs for real clocks are performed as well, but less often.
        exact = exactly and rounds % 8 != 7
        done += compare_programs(spec, options, exactly=exact, examples=100, chance=seed * 1_000_003 + rounds)
        rounds += 1
        progress(done)
    return done


# What programs are drawn from


@st.composite
def _weighted(draw: st.DrawFn, *strategies: st.SearchStrategy[Any]) -> Any:
    """Draw from one of these. One that is given twice is drawn twice as often, unlike with `one_of`."""
    return draw(strategies[draw(st.integers(0, len(strategies) - 1))])


def _call(name: str, *positional: Any, **named: Any) -> Call:
    return Call(name, positional, tuple(named.items()))


def _payloads(by_reference: bool) -> st.SearchStrategy[Any]:
    """Return payloads."""
    return st.sampled_from((1, None, 0, "", *((FIRST, SECOND) if by_reference else ("first",))))


def _operations(
    cids: st.SearchStrategy[Any],
    topics: st.SearchStrategy[Any],
    published: st.SearchStrategy[Any],
    delays: st.SearchStrategy[Any],
    payloads: st.SearchStrategy[Any],
) -> list[st.SearchStrategy[Operation]]:
    """Return the operations on one conversation or one topic; the frequent ones several times."""
    instances = st.sampled_from(("i1", "i2"))
    names = st.sampled_from(_NAMES)
    specs = st.one_of(
        names,
        st.tuples(names),
        st.tuples(names, payloads),
        st.tuples(names, payloads, payloads),
        st.builds(list, st.tuples(names, payloads)),
    )
    schedule = st.builds(
        lambda cid, instance_id, delay_ms, event: _call(
            "schedule_event", cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event
        ),
        cids, instances, delays, specs,
    )  # fmt: skip
    subscribe = st.builds(
        lambda cid, instance_id, topic, event: _call(
            "subscribe", cid=cid, instance_id=instance_id, topic=topic, event=event
        ),
        cids, instances, topics, st.one_of(names, specs),
    )  # fmt: skip
    publish = st.builds(lambda topic, message: _call("publish", topic, message), published, payloads)
    unsubscribe = st.builds(
        lambda cid, instance_id, topic: _call("unsubscribe", cid=cid, instance_id=instance_id, topic=topic),
        cids, instances, st.one_of(topics, st.none()),
    )  # fmt: skip
    cancel = st.builds(
        lambda cid, instance_id: _call("cancel_timers", cid, instance_id=instance_id),
        cids, st.one_of(st.none(), instances),
    )  # fmt: skip
    return [
        schedule, publish, subscribe, schedule, publish, subscribe, schedule, publish, schedule, publish,
        cancel,
        st.builds(CancelHandle, cids, st.integers(0, 2)),
        unsubscribe,
        st.builds(lambda cid: _call("remove_subscriptions_for_cid", cid), cids),
        st.builds(lambda cid, flow_id: _call("put_pending_flow", cid, flow_id), cids, payloads),
        st.builds(lambda name, cid: _call(name, cid), st.sampled_from(("pending_flow", "forget_pending_flow")), cids),
    ]  # fmt: skip


def _wrong_calls() -> list[Call]:
    """Return calls with one wrong argument."""
    names = {"cid": "c1", "instance_id": "i1"}
    timer = {**names, "delay_ms": 0, "event": "a"}
    subscription = {**names, "topic": "t", "event": "a"}
    events: tuple[Any, ...] = (None, 7, "", (), [], ("",), (None, 1), [1])
    return [
        *(_call("schedule_event", **{**timer, role: wrong}) for role in names for wrong in _WRONG_NAMES),
        *(_call("schedule_event", **{**timer, "delay_ms": wrong}) for wrong in (None, True, "1", nan, inf, -inf)),
        *(_call("schedule_event", **{**timer, "event": wrong}) for wrong in events),
        *(_call("subscribe", **{**subscription, role: wrong}) for role in (*names, "topic") for wrong in _WRONG_NAMES),
        *(_call("subscribe", **{**subscription, "event": wrong}) for wrong in events),
        *(_call("unsubscribe", **{**names, role: wrong}) for role in names for wrong in _WRONG_NAMES),
        *(_call("unsubscribe", **names, topic=wrong) for wrong in (7, "")),
        *(_call("cancel_timers", "c1", instance_id=wrong) for wrong in (7, "")),
        *(
            _call(name, wrong)
            for name in ("pending_flow", "forget_pending_flow", "cancel_timers", "remove_subscriptions_for_cid")
            for wrong in _WRONG_NAMES
        ),
        *(_call("put_pending_flow", wrong, 1) for wrong in _WRONG_NAMES),
        *(_call("publish", wrong, 1) for wrong in _WRONG_NAMES),
        _call("put_pending_flow", "c1", None),
        _call("install_dispatch", None),
    ]


def _program(operations: st.SearchStrategy[Operation]) -> st.SearchStrategy[tuple[Operation, ...]]:
    """Return about fifty operations, most often after an `install_dispatch` and a topic with several subscribers.

    They are drawn as lists of lists, because a single list has five elements on average.
    """
    crowd = [
        _call("subscribe", cid=cid, instance_id=instance_id, topic="t", event="a")
        for cid, instance_id in (("c1", "i1"), ("c2", "i1"), ("c1", "i2"))
    ]
    lists = st.lists(st.lists(operations, max_size=10), max_size=10)
    return st.builds(
        lambda first, *halves: (*first, *(operation for half in halves for part in half for operation in part)),
        st.sampled_from(((InstallDispatch(1),), (InstallDispatch(1), *crowd), (InstallDispatch(1), *crowd), ())),
        lists,
        lists,
    )


def _handlers(
    operations: st.SearchStrategy[Operation], raises: st.SearchStrategy[Operation]
) -> st.SearchStrategy[dict[str, tuple[Operation, ...]]]:
    """Return the operations that the deliveries of some event names perform; some raise at the end."""
    ends = st.one_of(st.just(()), st.just(()), st.tuples(raises))
    body = st.builds(lambda calls, end: (*calls, *end), st.lists(operations, max_size=4), ends)
    return st.dictionaries(st.sampled_from(_NAMES), body.filter(bool), max_size=3)
