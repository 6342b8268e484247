"""`schedule_event`: the event that a timer delivers, its names, and the arguments that are refused."""

from __future__ import annotations

import enum
from itertools import product
from typing import Any, NamedTuple

import pytest

from stube import NO_PAYLOAD, Event, EventSpec, Stats, TimerHandle
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import AWKWARD_NAMES, HOUR, NOT_A_NAME, guarantee, refused, unchanged

# Delivered events and names.


@guarantee("G21")
@pytest.mark.parametrize(
    ("spec", "name", "payload"),
    [
        ("tick", "tick", NO_PAYLOAD),
        (("tick",), "tick", NO_PAYLOAD),
        (["tick"], "tick", NO_PAYLOAD),
        (("tick", 1), "tick", 1),
        (["tick", 1], "tick", 1),
        (("tick", None), "tick", None),
        (("tick", 1, 2), "tick", (1, 2)),
        (["tick", 1, 2], "tick", (1, 2)),
        (("tick", 1, None, 3), "tick", (1, None, 3)),
        (("tick", (1, 2)), "tick", (1, 2)),
        (("tick", ()), "tick", ()),
        (("tick", [1, 2]), "tick", [1, 2]),
        (("tick", False), "tick", False),
    ],
    ids=repr,
)
def test_a_timer_delivers_the_name_and_the_payload_of_its_spec(
    run: Driver, spec: EventSpec, name: str, payload: Any
) -> None:
    """Fault: no payload and None are mixed up, one payload is wrapped in a tuple, two are not, or a third
    one is lost."""
    handle = run.schedule(0, spec, cid="c1", instance_id="clock")
    assert isinstance(handle, TimerHandle)
    run.settle()
    assert [(seen.cid, seen.event) for seen in run.recorder.seen] == [("c1", Event("clock", name, payload))]
    event = run.recorder.seen[0].event
    assert type(event) is Event
    assert type(event.payload) is type(payload)
    assert not event.signals
    assert run.stats() == Stats(accepted=1, delivered=1)


@guarantee("G21")
def test_an_event_list_is_copied_at_the_call(run: Driver) -> None:
    """Fault: the registry keeps the list itself, so its owner can change what will be delivered."""
    spec: list[Any] = ["tick", 1]
    run.schedule(0.5, spec)
    spec[0] = "changed"
    spec.clear()
    run.pass_time(0.5)
    assert [seen.event for seen in run.recorder.seen] == [Event("main", "tick", 1)]


@guarantee("G21")
def test_a_str_subclass_is_stored_as_its_plain_string(run: Driver) -> None:
    """Fault: an enum is kept as the key, or its `str()` (`Color.RED`) instead of its value."""

    class Name(str, enum.Enum):  # noqa: UP042 - unlike StrEnum, str() of this one is no plain value
        CID = "c1"
        INSTANCE = "clock"

    run.schedule(HOUR, cid=Name.CID, instance_id=Name.INSTANCE)
    assert list(run.registry.inspect("c1")) == ["c1"]
    assert run.registry.cancel_timers("c1", instance_id="clock") == 1
    run.schedule(0, cid=Name.CID, instance_id=Name.INSTANCE)
    run.settle()
    seen = run.recorder.seen[0]
    assert (type(seen.cid), seen.cid) == (str, "c1")
    assert (type(seen.event.instance_id), seen.event.instance_id) == (str, "clock")


@guarantee("G21")
def test_the_name_of_an_event_is_stored_as_its_plain_string(run: Driver) -> None:
    """Fault: the name in an event, or in a tuple, stays an instance of its subclass, and a host that compares types or
    writes it down sees it; or a tuple of a subclass, such as a named one, is refused."""

    class Name(str, enum.Enum):  # noqa: UP042 - unlike StrEnum, str() of this one is no plain value
        TICK = "tick"

    class Spec(NamedTuple):
        name: str
        payload: int

    for event in (Name.TICK, (Name.TICK,), [Name.TICK, 1], Spec(Name.TICK, 1)):
        run.recorder.clear()
        run.subscribe("t", event)
        shown: Any = run.registry.subscriptions()["t"]["c1", "main"]
        assert type(shown if isinstance(shown, str) else shown[0]) is str, event
        assert isinstance(shown, str) or type(shown) is tuple, event
        run.registry.publish("t", 1)
        run.schedule(0, event)
        run.settle()
        assert [(type(name), name) for name in run.recorder.names] == [(str, "tick")] * 2, event


@guarantee("G17", "G20")
def test_the_methods_of_a_str_subclass_are_never_called(run: Driver) -> None:
    """Fault: the name is hashed, compared or turned into a string by its own methods, possibly under a lock."""

    class Odd(str):
        __slots__ = ()

        def _refuse(self, *args: Any) -> Any:
            raise AssertionError("a method of the name was called")

        __eq__ = __ne__ = __str__ = __format__ = __len__ = __bool__ = _refuse
        __hash__ = _refuse

    registry = run.registry
    cid, instance_id, topic = Odd("c1"), Odd("i1"), Odd("t")
    registry.put_pending_flow(cid, 1)
    registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=0, event="tick")
    registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event="said")
    assert registry.publish(topic, 1) == 1
    run.settle()
    assert registry.pending_flow(cid) == 1
    assert registry.forget_pending_flow(cid) is False
    assert registry.cancel_timers(cid, instance_id=instance_id) == 0
    assert registry.unsubscribe(cid=cid, instance_id=instance_id, topic=topic) == 1
    assert registry.remove_subscriptions_for_cid(cid) == 0
    assert registry.inspect(cid) == {}
    assert sorted(run.recorder.names) == ["said", "tick"]


@guarantee("G21")
def test_timers_of_awkward_names_never_collide(run: Driver) -> None:
    """Case 25. Fault: keys are joined strings, so (`a:b`, `c`) is (`a`, `b:c`)."""
    pairs = [(cid, instance_id) for cid in AWKWARD_NAMES for instance_id in AWKWARD_NAMES]
    for index, (cid, instance_id) in enumerate(pairs):
        run.schedule(HOUR, ("tick", index), cid=cid, instance_id=instance_id)
    assert len(run.registry.inspect()) == len(AWKWARD_NAMES)
    for cid, instance_id in pairs:
        assert run.registry.cancel_timers(cid, instance_id=instance_id) == 1
    assert run.stats() == Stats(accepted=len(pairs), cancelled=len(pairs))


# Refused arguments.


@guarantee("G15")
def test_schedule_event_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: the conversation's entry is made before the arguments are checked."""
    for which, (wrong, error) in product(("cid", "instance_id"), NOT_A_NAME):
        arguments: dict[str, Any] = {"cid": "c1", "instance_id": "main", which: wrong}
        with refused(wrong, error, which, registry=run.registry):
            run.registry.schedule_event(**arguments, delay_ms=0, event="tick")


WRONG_EVENTS: list[tuple[Any, type[Exception]]] = [
    ((), ValueError),
    ([], ValueError),
    ("", ValueError),
    (("",), ValueError),
    (("", 1), ValueError),
    ((1, "tick"), TypeError),
    ([None], TypeError),
    (None, TypeError),
    (7, TypeError),
    (b"tick", TypeError),
    ({"tick"}, TypeError),
    ({"tick": 1}, TypeError),
]
"""Values that every operation refuses as an event spec, each with the error that it raises."""


@guarantee("G15")
def test_schedule_event_refuses_an_invalid_event(run: Driver) -> None:
    """Case 24. Fault: an empty tuple is stored and fails in the delivery thread, where the caller cannot catch it."""
    for wrong, error in WRONG_EVENTS:
        with refused(wrong, error, "event", registry=run.registry):
            run.schedule(0, wrong)


@guarantee("G15")
def test_operations_take_names_only_by_keyword(run: Driver) -> None:
    """Fault: positional arguments are accepted, so that a caller can swap cid and instance."""
    registry: Any = run.registry
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (registry.schedule_event, ("c1", "main", 0, "tick")),
        (registry.subscribe, ("c1", "main", "t", "said")),
        (registry.unsubscribe, ("c1", "main")),
        (registry.cancel_timers, ("c1", "main")),
    ]
    for operation, arguments in calls:
        with unchanged(run.registry), pytest.raises(TypeError):
            operation(*arguments)
