"""The checker on histories written by hand: each bad history beside the nearest good one.

Instants are written in microseconds. `A` and `B` are clients, `D` delivers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any, cast

import pytest
from typing_extensions import override

import stube
from stube import Backend, Event
from stube.testing._harness import create, failures_unlogged
from stube.testing._history.checker import Verdict, check_history
from stube.testing._history.linearizability import Step, Undecided, linearize
from stube.testing._history.recorder import RecordedRegistry, clock_option, promised
from stube.testing._history.records import Call, History, Record, Remainder, Run
from stube.testing._history.sequential_specs import NEVER, baton_steps
from stube.testing._history.workload import HistoryFailed, random_history
from stube.testing._model import random_programs
from stube_backends.virtual import VirtualRegistry
from tools import soak

US = 1000  # nanoseconds


def call(client: str, operation: str, at: float, until: float | None, result: Any = None, **arguments: Any) -> Call:
    """Make a call whose instants are also the readings of the registry's clock."""
    clock_after = None if until is None else int(until * US)
    return Call(
        client,
        operation,
        arguments,
        int(at * US),
        clock_after,
        result,
        clock_before=int(at * US),
        clock_after=clock_after,
    )


def schedule(at: float, until: float | None, id: str, delay_us: float = 0, **where: str) -> Call:  # noqa: A002
    """Make the call in which `A` schedules a timer, by default for c1/i1."""
    given = {"cid": "c1", "instance_id": "i1", **where, "delay_ms": delay_us / 1000, "name": "due", "id": id}
    return call("A", "schedule_event", at, until, **given)


def publish(at: float, until: float | None, id: str, count: int | None, client: str = "A", topic: str = "t") -> Call:  # noqa: A002
    return call(client, "publish", at, until, count, topic=topic, id=id)


def subscribe(at: float, until: float, cid: str = "c1", instance_id: str = "i1") -> Call:
    return call("A", "subscribe", at, until, cid=cid, instance_id=instance_id, topic="t", event="said")


def unsubscribe(at: float, until: float | None, count: int | None, cid: str = "c1", instance_id: str = "i1") -> Call:
    return call("B", "unsubscribe", at, until, count, cid=cid, instance_id=instance_id, topic="t")


def cancel_timers(at: float, until: float, count: int, cid: str = "c1", instance_id: str | None = None) -> Call:
    return call("B", "cancel_timers", at, until, count, cid=cid, instance_id=instance_id)


def cancel(at: float, until: float, result: bool, id: str, client: str = "B") -> Call:  # noqa: A002
    return call(client, "cancel", at, until, result, id=id)


def reset(at: float, until: float) -> Call:
    return call("B", "reset_state", at, until)


def put(at: float, until: float, flow_id: str) -> Call:
    return call("A", "put_pending_flow", at, until, cid="c1", flow_id=flow_id)


def take(at: float, until: float, result: str | None, client: str = "A") -> Call:
    return call(client, "pending_flow", at, until, result, cid="c1")


def forget(at: float, until: float, result: bool) -> Call:
    return call("B", "forget_pending_flow", at, until, result, cid="c1")


def look(at: float, until: float, *seen: tuple[str, str, str]) -> Call:
    return call("B", "subscriptions", at, until, seen)


def run(at: float, until: float | None, id: str, cid: str = "c1", instance_id: str = "i1", by: str = "D") -> Run:  # noqa: A002
    return Run(cid, instance_id, "due", id, int(at * US), None if until is None else int(until * US), by)


def end(at: float = 10_000, **held: Any) -> Remainder:
    return Remainder(int(at * US), **held)


def history(*records: Record) -> History:
    return History(
        tuple(one for one in records if isinstance(one, Call)),
        tuple(one for one in records if isinstance(one, Run)),
        next((one for one in records if isinstance(one, Remainder)), None),
    )


def check(*records: Record, **promises: Any) -> Verdict:
    """Check a history, and check it again after a round trip through JSON."""
    made = history(*records)
    verdict = check_history(made, **promises)
    assert check_history(History.from_json(made.to_json()), **promises) == verdict
    return verdict


def broken(*records: Record, **promises: Any) -> set[str]:
    """Return the guarantees that the history breaks."""
    verdict = check(*records, **promises)
    assert not verdict.undecided
    return {violation.guarantee for violation in verdict.violations}


SUBSCRIBED = end(subscriptions=(("t", "c1", "i1"),))
BOTH = end(subscriptions=(("t", "c1", "i1"), ("t", "c2", "i1")))

# Each bad history with the guarantees that it breaks (and may break as well), and a good one that differs from it by
# one instant or one result only.
CASES: dict[str, tuple[str, tuple[Record, ...], tuple[Record, ...]]] = {
    "two deliveries of a conversation at once": (
        "G1",
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 9, "t1"), run(8, 12, "t2"), end()),
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 8, "t1"), run(8, 12, "t2"), end()),
    ),
    "a delivery while another one never ended": (
        "G1",
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, None, "t1"), run(8, 12, "t2")),
        (schedule(0, 1, "t1"), schedule(2, 3, "t2", cid="c2"), run(5, None, "t1"), run(8, 12, "t2", "c2")),
    ),
    "accepted one after the other": (
        "G2",
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 6, "t2"), run(8, 9, "t1"), end()),
        (schedule(0, 2, "t1"), schedule(2, 3, "t2"), run(5, 6, "t2"), run(8, 9, "t1"), end()),
    ),
    "due one after the other": (
        "G2",
        (schedule(0, 1, "t1", 50), schedule(0, 9, "t2", 40), run(55, 56, "t1"), run(57, 58, "t2"), end()),
        (schedule(0, 1, "t1", 50), schedule(0, 10, "t2", 40), run(55, 56, "t1"), run(57, 58, "t2"), end()),
    ),
    "accepted first at a tie by the clock": (
        "G2",
        (
            replace(schedule(0, 1, "t1", 5), clock_after=0),
            replace(schedule(2, 3, "t2"), clock_before=5 * US, clock_after=5 * US),
            run(5, 6, "t2"),
            run(8, 9, "t1"),
            end(),
        ),
        (
            replace(schedule(0, 2, "t1", 5), clock_after=0),
            replace(schedule(2, 3, "t2"), clock_before=5 * US, clock_after=5 * US),
            run(5, 6, "t2"),
            run(8, 9, "t1"),
            end(),
        ),
    ),
    "one publisher's messages the other way round": (
        "G2 G4",
        (subscribe(0, 1), publish(2, 3, "m1", 1), publish(4, 5, "m2", 1), run(6, 7, "m2"), run(8, 9, "m1"), SUBSCRIBED),
        (
            subscribe(0, 1), publish(2, 3, "m1", 1), publish(3, 5, "m2", 1, "B"), run(6, 7, "m2"), run(8, 9, "m1"),
            SUBSCRIBED,
        ),
    ),
    "cancelled by its handle and delivered": (
        "G5",
        (schedule(0, 1, "t1"), cancel(2, 3, True, "t1"), run(4, 5, "t1"), end()),
        (schedule(0, 1, "t1"), cancel(2, 3, False, "t1"), run(4, 5, "t1"), end()),
    ),
    "cancelled twice by its handle": (
        "G5",
        (schedule(0, 1, "t1"), cancel(2, 3, True, "t1"), cancel(2, 3, True, "t1", "A"), end()),
        (schedule(0, 1, "t1"), cancel(2, 3, True, "t1"), cancel(2, 3, False, "t1", "A"), end()),
    ),
    "delivered twice": (
        "G5",
        (schedule(0, 1, "t1"), run(4, 5, "t1"), run(6, 7, "t1"), end()),
        (schedule(0, 1, "t1"), run(4, 5, "t1"), schedule(4, 5, "t2"), run(6, 7, "t2"), end()),
    ),
    "delivered to another instance": (
        "G5",
        (schedule(0, 1, "t1"), run(4, 5, "t1", instance_id="i2")),
        (schedule(0, 1, "t1"), run(4, 5, "t1")),
    ),
    "delivered before it was scheduled": (
        "G5",
        (schedule(2, 3, "t1"), run(1, 2, "t1")),
        (schedule(2, 3, "t1"), run(2, 3, "t1")),
    ),
    "neither delivered nor cancelled": (
        "G5",
        (schedule(0, 1, "t1"), end()),
        (schedule(0, 1, "t1"), end(timers=("t1",))),
    ),
    "lost behind a cancel that came before it": (
        "G5",
        (cancel_timers(0, 1, 1), schedule(2, 3, "t1"), end()),
        (cancel_timers(0, 2, 1), schedule(2, 3, "t1"), end()),
    ),
    "pending after a cancel": (
        "G5",
        (schedule(0, 1, "t1", 1e9), cancel_timers(2, 3, 1), end(timers=("t1",))),
        (schedule(0, 1, "t1", 1e9), cancel_timers(2, 3, 1), schedule(3, 4, "t2", 1e9), end(timers=("t2",))),
    ),
    "pending though it was delivered": (
        "G5",
        (schedule(0, 1, "t1"), run(2, 3, "t1"), end(timers=("t1",))),
        (schedule(0, 1, "t1"), run(2, 3, "t1"), end()),
    ),
    "a cancel that counts too many": (
        "G5",
        (schedule(0, 1, "t1", 1e9), cancel_timers(2, 3, 2), end()),
        (schedule(0, 1, "t1", 1e9), schedule(1, 2, "t2", 1e9), cancel_timers(2, 3, 2), end()),
    ),
    "a cancel that counts a timer which runs": (
        "G5",
        (schedule(0, 1, "t1"), run(2, 5, "t1"), cancel_timers(3, 4, 1), end()),
        (schedule(0, 1, "t1"), run(2, 5, "t1"), cancel_timers(3, 4, 0), end()),
    ),
    "a cancel of one instance that takes another's": (
        "G5",
        (schedule(0, 1, "t1", 1e9), cancel_timers(2, 3, 1, instance_id="i2"), end()),
        (schedule(0, 1, "t1", 1e9), cancel_timers(2, 3, 1, instance_id="i1"), end()),
    ),
    "claimed after a cancel, behind one in dispatch": (
        "G5",
        (
            schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 9, "t1"), cancel_timers(6, 7, 0), run(10, 11, "t2"),
            end(),
        ),
        (
            schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 6, "t1"), cancel_timers(6, 7, 0), run(10, 11, "t2"),
            end(),
        ),
    ),
    "the second one claimed after a cancel": (
        "G5",
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), cancel_timers(4, 5, 0), run(6, 7, "t1"), run(8, 9, "t2"), end()),
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), cancel_timers(4, 5, 1), run(6, 7, "t1"), end()),
    ),
    "not due when it was cancelled": (
        "G5",
        (schedule(0, 1, "t1", 10), cancel_timers(8, 9, 0), run(15, 16, "t1"), end()),
        (schedule(0, 1, "t1", 10), cancel_timers(8, 10, 0), run(15, 16, "t1"), end()),
    ),
    "claimed after an unsubscribe": (
        "G5",
        (
            subscribe(0, 1), schedule(1, 2, "t1"), publish(2, 3, "m1", 1), unsubscribe(5, 6, 1),
            run(5, 7, "t1"), run(8, 9, "m1"), end(),
        ),
        (
            subscribe(0, 1), schedule(1, 2, "t1"), publish(2, 3, "m1", 1), unsubscribe(5, 6, 1),
            run(5, 6, "t1"), run(8, 9, "m1"), end(),
        ),
    ),
    "revived by subscribing again": (
        "G5",
        (
            subscribe(0, 1), schedule(1, 2, "t1"), publish(2, 3, "m1", 1), unsubscribe(4, 5, 1), subscribe(6, 7),
            run(8, 9, "t1"), run(9, 10, "m1"), SUBSCRIBED,
        ),
        (
            subscribe(0, 1), schedule(1, 2, "t1"), unsubscribe(4, 5, 1), subscribe(6, 7), publish(7, 8, "m1", 1),
            run(8, 9, "t1"), run(9, 10, "m1"), SUBSCRIBED,
        ),
    ),
    "counted by two cancels that race": (
        "G7",
        (
            schedule(0, 1, "t1", 1e9), cancel_timers(2, 4, 1), call("A", "cancel_timers", 3, 5, 1, cid="c1"), end(),
        ),
        (
            schedule(0, 1, "t1", 1e9), cancel_timers(2, 4, 1), call("A", "cancel_timers", 3, 5, 0, cid="c1"), end(),
        ),
    ),
    "lost between a schedule and a cancel that race": (
        "G7",
        (schedule(0, 3, "t1"), cancel_timers(1, 2, 0), call("C", "cancel_timers", 1, 3, 0, cid="c1"), end()),
        (schedule(0, 3, "t1"), cancel_timers(1, 2, 0), call("C", "cancel_timers", 1, 3, 1, cid="c1"), end()),
    ),
    "a subscription removed twice": (
        "G7",
        (subscribe(0, 1), unsubscribe(2, 4, 1), call("A", "remove_subscriptions_for_cid", 3, 5, 1, cid="c1"), end()),
        (subscribe(0, 1), unsubscribe(2, 4, 1), call("A", "remove_subscriptions_for_cid", 3, 5, 0, cid="c1"), end()),
    ),
    "a subscription that outlives its removal": (
        "G7",
        (subscribe(0, 1), unsubscribe(2, 4, 1), SUBSCRIBED),
        (subscribe(0, 1), unsubscribe(2, 4, 1), end()),
    ),
    "a snapshot with what had been removed": (
        "G7",
        (subscribe(0, 1), unsubscribe(2, 3, 1), look(4, 5, ("t", "c1", "i1")), end()),
        (subscribe(0, 1), unsubscribe(2, 4, 1), look(4, 5, ("t", "c1", "i1")), end()),
    ),
    "a snapshot with what nobody subscribed to": (
        "G7",
        (subscribe(0, 1), look(4, 5, ("t", "c1", "i1"), ("u", "c1", "i1")), SUBSCRIBED),
        (subscribe(0, 1), look(4, 5, ("t", "c1", "i1")), SUBSCRIBED),
    ),
    "a baton taken twice": (
        "G8",
        (put(0, 1, "f"), take(2, 4, "f"), take(3, 5, "f", "B"), end()),
        (put(0, 1, "f"), take(2, 4, "f"), take(3, 5, None, "B"), end()),
    ),
    "a baton taken that nobody put": (
        "G8",
        (take(2, 4, "f"), end()),
        (take(2, 4, None), end()),
    ),
    "a baton taken before it was put": (
        "G8",
        (take(0, 1, "f"), put(2, 3, "f"), end()),
        (take(0, 2, "f", "B"), put(2, 3, "f"), end()),
    ),
    "a baton that was replaced": (
        "G8",
        (put(0, 1, "f"), put(2, 3, "g"), take(4, 5, "f", "B"), end()),
        (put(0, 1, "f"), put(2, 4, "g"), take(4, 5, "f", "B"), end(flows=("c1",))),
    ),
    "a baton that was lost": (
        "G8",
        (put(0, 1, "f"), take(2, 3, None), end()),
        (put(0, 2, "f"), take(2, 3, None, "B"), end(flows=("c1",))),
    ),
    "a baton forgotten and taken": (
        "G8",
        (put(0, 1, "f"), forget(2, 4, True), take(3, 5, "f"), end()),
        (put(0, 1, "f"), forget(2, 4, False), take(3, 5, "f"), end()),
    ),
    "a baton that outlives a reset": (
        "G8",
        (put(0, 1, "f"), reset(2, 3), end(flows=("c1",))),
        (put(0, 2, "f"), reset(2, 3), end(flows=("c1",))),
    ),
    "a subscriber that gets it twice": (
        "G16",
        (subscribe(0, 1), publish(2, 3, "m1", 1), run(4, 5, "m1"), run(6, 7, "m1"), SUBSCRIBED),
        (subscribe(0, 1), publish(2, 3, "m1", 1), run(4, 5, "m1"), SUBSCRIBED),
    ),
    "one that never subscribed gets it": (
        "G16",
        (subscribe(0, 1), publish(2, 3, "m1", 2), run(4, 5, "m1"), run(4, 5, "m1", "c2"), SUBSCRIBED),
        (subscribe(0, 1), subscribe(1, 2, "c2"), publish(2, 3, "m1", 2), run(4, 5, "m1"), run(4, 5, "m1", "c2"), BOTH),
    ),
    "one that came later gets it": (
        "G16",
        (publish(0, 1, "m1", 1), subscribe(2, 3), run(4, 5, "m1"), SUBSCRIBED),
        (publish(0, 2, "m1", 1, "B"), subscribe(2, 3), run(4, 5, "m1"), SUBSCRIBED),
    ),
    "one that had gone gets it": (
        "G16",
        (subscribe(0, 1), unsubscribe(2, 3, 1), publish(4, 5, "m1", 1), run(6, 7, "m1"), end()),
        (subscribe(0, 1), unsubscribe(2, 4, 1), publish(4, 5, "m1", 1), run(6, 7, "m1"), end()),
    ),
    "one that stays misses it": (
        "G16",
        (subscribe(0, 1), publish(2, 3, "m1", 1), SUBSCRIBED),
        (subscribe(0, 1), publish(2, 3, "m1", 1), unsubscribe(4, 5, 1), end()),
    ),
    "one that stays misses it, another comes and goes": (
        "G16",
        (
            subscribe(0, 1), subscribe(1, 2, "c2"), unsubscribe(2, 3, 1, "c2"), publish(2, 3, "m1", 2),
            run(5, 6, "m1", "c2"), SUBSCRIBED,
        ),
        (
            subscribe(0, 1), subscribe(1, 2, "c2"), unsubscribe(2, 3, 1, "c2"), publish(2, 3, "m1", 2),
            run(5, 6, "m1", "c2"), run(5, 6, "m1"), SUBSCRIBED,
        ),
    ),
    "fewer targets than receivers": (
        "G16",
        (subscribe(0, 1), subscribe(1, 2, "c2"), publish(2, 3, "m1", 1), run(4, 5, "m1"), run(4, 5, "m1", "c2"), BOTH),
        (subscribe(0, 1), subscribe(1, 2, "c2"), publish(2, 3, "m1", 2), run(4, 5, "m1"), run(4, 5, "m1", "c2"), BOTH),
    ),
    "more targets than there can be": (
        "G16",
        (subscribe(0, 1), publish(2, 3, "m1", 2), run(4, 5, "m1"), SUBSCRIBED),
        (subscribe(0, 1), subscribe(2, 9, "c2"), publish(2, 3, "m1", 2), run(4, 5, "m1"), run(4, 5, "m1", "c2"), BOTH),
    ),
    "a timer claimed after a reset": (
        "G18",
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 9, "t1"), reset(6, 7), run(10, 11, "t2"), end()),
        (schedule(0, 1, "t1"), schedule(2, 3, "t2"), run(5, 6, "t1"), reset(6, 7), run(10, 11, "t2"), end()),
    ),
    "a message claimed after a reset": (
        "G18",
        (
            subscribe(0, 1), schedule(1, 2, "t1"), publish(2, 3, "m1", 1), run(5, 9, "t1"), reset(6, 7),
            run(10, 11, "m1"), end(),
        ),
        (
            subscribe(0, 1), schedule(1, 2, "t1"), publish(2, 3, "m1", 1), run(5, 9, "t1"), reset(6, 12),
            run(10, 11, "m1"), end(),
        ),
    ),
    "a timer not due at a reset": (
        "G18",
        (schedule(0, 1, "t1", 10), reset(6, 7), run(15, 16, "t1"), end()),
        (schedule(0, 1, "t1", 10), reset(6, 12), run(15, 16, "t1"), end()),
    ),
    "pending after a reset": (
        "G18",
        (schedule(0, 1, "t1", 1e9), reset(2, 3), end(timers=("t1",))),
        (schedule(0, 2, "t1", 1e9), reset(2, 3), end(timers=("t1",))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_bad_history_is_accused_and_the_nearest_good_one_is_not(name: str) -> None:
    """Fault: a rule that sees nothing, or one that takes for certain what scheduling alone may bring about."""
    guarantees, bad, good = CASES[name]
    assert broken(*bad) == set(guarantees.split())
    assert broken(*good) == set()


def test_every_guarantee_has_its_cases() -> None:
    """Fault: a guarantee that the checker speaks of and that no history tries."""
    tried = {number for guarantees, _, _ in CASES.values() for number in guarantees.split()}
    assert tried == {"G1", "G2", "G4", "G5", "G7", "G8", "G16", "G18"}


STORIES = {
    "two deliveries of a conversation at once": """\
G1 (serial) is broken: two deliveries of conversation 'c1' ran at the same time.
  0.005 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 't1'))
  0.008 to 0.012 ms  D  dispatch('c1', Event('i1', 'due', 't2'))""",
    "accepted one after the other": """\
G2 (in order) is broken: 't1' became ready before 't2' and began after it, both in conversation 'c1'.
  0.000 to 0.001 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=0.0, event=('due', 't1'))
  0.002 to 0.003 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=0.0, event=('due', 't2'))
  0.005 to 0.006 ms  D  dispatch('c1', Event('i1', 'due', 't2'))
  0.008 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 't1'))""",
    "claimed after a cancel, behind one in dispatch": """\
G5 (final) is broken: 't2' of conversation 'c1' was claimed after cancel_timers() had returned.
  0.002 to 0.003 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=0.0, event=('due', 't2'))
  0.005 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 't1'))
  0.006 to 0.007 ms  B  cancel_timers('c1') -> 0
  0.010 to 0.011 ms  D  dispatch('c1', Event('i1', 'due', 't2'))""",
    "one publisher's messages the other way round": """\
G2 (in order) is broken: 'm1' became ready before 'm2' and began after it, both in conversation 'c1'.
  0.002 to 0.003 ms  A  publish('t', 'm1') -> 1
  0.004 to 0.005 ms  A  publish('t', 'm2') -> 1
  0.006 to 0.007 ms  D  dispatch('c1', Event('i1', 'due', 'm2'))
  0.008 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 'm1'))
G4 (topic order) is broken: A published 'm1' before 'm2', and they reached instance 'i1' of conversation 'c1' \
the other way round.
  0.002 to 0.003 ms  A  publish('t', 'm1') -> 1
  0.004 to 0.005 ms  A  publish('t', 'm2') -> 1
  0.006 to 0.007 ms  D  dispatch('c1', Event('i1', 'due', 'm2'))
  0.008 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 'm1'))""",
    "neither delivered nor cancelled": """\
G5 (final) is broken: timer 't1' was neither delivered nor cancelled, and it is not pending either.
   0.000 to  0.001 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=0.0, event=('due', 't1'))
  10.000 to 10.000 ms     in the end: timers none, batons none, subscriptions none""",
    "counted by two cancels that race": """\
G7 (whole) is broken: no order of the calls explains this record of the timers of conversation 'c1': \
cancel_timers('c1') -> 1. Before: pending t1.
  0.000 to 0.001 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=1000000.0, event=('due', 't1'))
  0.002 to 0.004 ms  B  cancel_timers('c1') -> 1
  0.003 to 0.005 ms  A  cancel_timers('c1') -> 1""",
    "a snapshot with what had been removed": """\
G7 (whole) is broken: no order of the calls explains this record of the subscriptions of conversation 'c1': \
subscriptions() -> (('t', 'c1', 'i1'),). Before: no subscription.
  0.002 to 0.003 ms  B  unsubscribe(cid='c1', instance_id='i1', topic='t') -> 1
  0.004 to 0.005 ms  B  subscriptions() -> (('t', 'c1', 'i1'),)""",
    "a baton taken twice": """\
G8 (one taker) is broken: the baton 'f' of conversation 'c1' was put once, and taken twice.
  0.000 to 0.001 ms  A  put_pending_flow('c1', 'f')
  0.002 to 0.004 ms  A  pending_flow('c1') -> 'f'
  0.003 to 0.005 ms  B  pending_flow('c1') -> 'f'""",
    "a baton that was replaced": """\
G8 (one taker) is broken: no order of the calls explains this record of the baton of conversation 'c1': \
pending_flow('c1') -> 'f'. Before: baton 'g'.
  0.000 to 0.001 ms  A  put_pending_flow('c1', 'f')
  0.002 to 0.003 ms  A  put_pending_flow('c1', 'g')
  0.004 to 0.005 ms  B  pending_flow('c1') -> 'f'""",
    "one that had gone gets it": """\
G16 (snapshot) is broken: instance 'i1' of conversation 'c1' got message 'm1', and did not subscribe to 't' \
when it was published.
  0.002 to 0.003 ms  B  unsubscribe(cid='c1', instance_id='i1', topic='t') -> 1
  0.004 to 0.005 ms  A  publish('t', 'm1') -> 1
  0.006 to 0.007 ms  D  dispatch('c1', Event('i1', 'due', 'm1'))""",
    "a timer not due at a reset": """\
G18 (generations) is broken: 't1' of conversation 'c1' was claimed after reset_state() had returned.
  0.000 to 0.001 ms  A  schedule_event(cid='c1', instance_id='i1', delay_ms=0.01, event=('due', 't1'))
  0.006 to 0.007 ms  B  reset_state()
  0.015 to 0.016 ms  D  dispatch('c1', Event('i1', 'due', 't1'))""",
}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_says_who_did_what_and_when(name: str) -> None:
    """Fault: a story without the record that matters, with one that does not, or with instants nobody can compare."""
    assert str(check(*CASES[name][1])) == STORIES[name]


def test_a_story_is_told_for_every_guarantee() -> None:
    """Fault: a guarantee whose story nobody has read."""
    told = {number for name in STORIES for number in CASES[name][0].split()}
    assert told == {"G1", "G2", "G4", "G5", "G7", "G8", "G16", "G18"}


# Optional promises, and facts that are uncertain


def test_subscribers_of_a_topic_see_one_order_where_that_is_promised() -> None:
    """Fault: `common_topic_order` is checked where it is not promised, or by pairs only: three may go round in a
    circle."""
    records: tuple[Record, ...] = (
        *(subscribe(0, 1, cid) for cid in ("c1", "c2")), publish(2, 5, "m1", 2), publish(2, 5, "m2", 2, "B"),
        run(6, 7, "m1"), run(8, 9, "m2"), run(6, 7, "m2", "c2"), run(8, 9, "m1", "c2"),
    )  # fmt: skip
    assert broken(*records) == set()
    assert str(check(*records, common_topic_order=True)) == (
        "G4 (topic order) is broken: no order of the messages 'm1', 'm2' on topic 't' is the one in which all its "
        "subscribers got them.\n"
        "  0.006 to 0.007 ms  D  dispatch('c1', Event('i1', 'due', 'm1'))\n"
        "  0.006 to 0.007 ms  D  dispatch('c2', Event('i1', 'due', 'm2'))\n"
        "  0.008 to 0.009 ms  D  dispatch('c1', Event('i1', 'due', 'm2'))\n"
        "  0.008 to 0.009 ms  D  dispatch('c2', Event('i1', 'due', 'm1'))"
    )
    # Each subscriber misses one message, because it had unsubscribed in time.
    orders = (("c1", "m1", "m2"), ("c2", "m2", "m3"), ("c3", "m3", "m1"))
    published = [publish(2, 5, message, 2, message) for message in ("m1", "m2", "m3")]
    comings = [call("X", "subscribe", 2, 5, cid=cid, instance_id="i1", topic="t", event="e") for cid, _, _ in orders]
    circle: list[Record] = [*comings, *published]
    for cid, first, second in orders:
        circle += [run(6, 7, first, cid), run(8, 9, second, cid)]
    assert broken(*circle) == set()
    assert broken(*circle, common_topic_order=True) == {"G4"}
    assert broken(*circle[:-1], common_topic_order=True) == set()


def test_nothing_within_the_skew_of_two_clocks_is_certain() -> None:
    """Fault: records of two machines are compared as if one clock had stamped them; or a skew hides everything."""
    for name, (guarantees, bad, _) in CASES.items():
        if name == "two deliveries of a conversation at once":
            assert broken(*bad, skew_ns=US - 1) == {"G1"}
        if name == "accepted one after the other":
            assert broken(*bad, skew_ns=US - 1) == {"G2"}
        found = broken(*bad, skew_ns=US)
        assert found <= {*guarantees.split(), "G7"}, name  # G7: records without an order may have raced
    assert broken(*CASES["two deliveries of a conversation at once"][1], skew_ns=US) == set()
    assert broken(*CASES["accepted one after the other"][1], skew_ns=US) == {"G2"}, "by the registry's clock"
    assert broken(*CASES["accepted one after the other"][1], skew_ns=US, clock_error_ns=US) == set()
    assert broken(*CASES["a subscriber that gets it twice"][1], skew_ns=10**9) == {"G16"}


@pytest.mark.parametrize("name", CASES)
def test_a_good_history_stays_good_with_any_skew_and_error(name: str) -> None:
    """Fault: a widened interval makes something certain."""
    for wide in (1, US, 5 * US, 10**9):
        assert broken(*CASES[name][2], skew_ns=wide, clock_error_ns=wide, one_instant_snapshot=True) == set()


def test_clock_readings_are_trusted_within_their_error() -> None:
    """Fault: a due instant is taken from a clock that is not the registry's to the nanosecond."""
    due = CASES["due one after the other"][1]
    assert broken(*due, clock_error_ns=US - 1) == {"G2"}
    assert broken(*due, clock_error_ns=US) == set()
    not_due = CASES["not due when it was cancelled"][1]
    assert broken(*not_due, clock_error_ns=US - 1) == {"G5"}
    assert broken(*not_due, clock_error_ns=US) == set()


def test_missing_clock_reading_proves_nothing() -> None:
    """Fault: a missing reading counts as 0, so that every timer is due late."""
    bad = CASES["not due when it was cancelled"][1]
    unread = [replace(one, clock_before=None, clock_after=None) if isinstance(one, Call) else one for one in bad]
    assert broken(*unread) == set()


def test_a_snapshot_is_of_one_instant_where_that_is_promised() -> None:
    """Fault: a snapshot that is put together from several instants is accused, or never."""
    records = (
        subscribe(0, 1), unsubscribe(2, 3, 1), subscribe(4, 5, "c1", "i2"),
        look(1, 6, ("t", "c1", "i1"), ("t", "c1", "i2")), end(subscriptions=(("t", "c1", "i2"),)),
    )  # fmt: skip
    assert broken(*records) == set()
    assert broken(*records, one_instant_snapshot=True) == {"G7"}


def test_a_call_that_never_returned_may_have_done_its_work_or_not() -> None:
    """Fault: a client that died in the middle of a call makes a good registry look wrong."""
    lost = call("B", "cancel_timers", 2, None, cid="c1")
    for records in (
        (schedule(0, 1, "t1"), lost, end()),
        (schedule(0, 1, "t1"), lost, run(3, 4, "t1"), end()),
        (schedule(0, 1, "t1"), lost, end(timers=("t1",))),
        (schedule(0, None, "t1"), end()),
        (schedule(0, None, "t1"), end(timers=("t1",))),
        (schedule(0, 1, "t1"), call("B", "cancel", 2, None, id="t1"), end()),
        (put(0, 1, "f"), call("B", "pending_flow", 2, None, cid="c1"), end()),
        (put(0, 1, "f"), call("B", "forget_pending_flow", 2, None, cid="c1"), end(flows=("c1",))),
        (subscribe(0, 1), publish(2, None, "m1", None), SUBSCRIBED),
        (subscribe(0, 1), publish(2, None, "m1", None), run(3, 4, "m1"), SUBSCRIBED),
        (subscribe(0, 1), unsubscribe(2, None, None), publish(3, 4, "m1", 0), end()),
        (subscribe(0, 1), call("B", "reset_state", 2, None), publish(3, 4, "m1", 1), run(5, 6, "m1"), SUBSCRIBED),
        (subscribe(0, 1), call("B", "subscriptions", 2, None), SUBSCRIBED),
    ):
        assert broken(*records) == set(), records
    assert broken(put(0, 1, "f"), call("B", "pending_flow", 2, None, cid="c1"), take(3, 4, "f"), take(5, 6, "f")) == {
        "G8"
    }


def test_a_call_that_raised_has_changed_nothing() -> None:
    """Fault: a refused timer or message is missed, or a delivery of one is not."""
    refused = replace(schedule(0, 1, "t1"), error="RegistryFull")
    assert broken(refused, replace(publish(2, 3, "m1", None), error="RegistryFull"), end()) == set()
    assert broken(refused, run(2, 3, "t1"), end()) == {"G5"}
    assert broken(subscribe(0, 1), replace(publish(2, 3, "m1", None), error="RegistryFull"), run(4, 5, "m1")) == {"G5"}


def test_cut_off_history_says_nothing_about_missing_deliveries() -> None:
    """Fault: what was not delivered until the recorder stopped counts as lost."""
    for name in ("neither delivered nor cancelled", "one that stays misses it", "pending after a cancel"):
        assert broken(*CASES[name][1]) != set()
        assert broken(*(one for one in CASES[name][1] if not isinstance(one, Remainder))) == set()


def test_search_that_takes_too_long_gives_up_without_accusing() -> None:
    """Fault: a hard history hangs the checker, or what it could not decide counts as a violation."""
    hard = [
        call(f"client {number}", "put_pending_flow", number, 100, cid="c1", flow_id=str(number)) for number in range(12)
    ]
    verdict = check(*hard, take(200, 201, "nothing of that kind", "B"), put(0, 300, "nothing of that kind"), limit=30)
    assert (verdict.violations, verdict.undecided) == ((), ("the baton of conversation 'c1'",))
    assert not verdict.holds
    assert str(verdict) == "Undecided, because the search took too long: the baton of conversation 'c1'."
    verdict.assert_holds()
    with pytest.raises(Undecided):
        linearize([Step(0, 1, lambda state: state, end())] * 3, 0, limit=2)


def test_a_verdict_raises_its_stories() -> None:
    """Fault: a violation that a test only prints."""
    good, bad = CASES["a baton taken twice"][2], CASES["a baton taken twice"][1]
    assert check(*good).holds
    assert str(check(*good)) == "Every guarantee holds."
    check(*good).assert_holds()
    with pytest.raises(AssertionError) as raised:
        check(*bad).assert_holds()
    assert str(raised.value) == STORIES["a baton taken twice"]


def test_the_search_agrees_with_trying_every_order() -> None:
    """Fault: the search overlooks an order that explains the records, or takes one that the instants forbid."""
    chance = random.Random(5)
    outcomes = Counter[bool]()
    for _ in range(1_500):
        calls: list[Call] = []
        for number in range(5):
            at = chance.randrange(8)
            until = None if chance.random() < 0.1 else at + chance.randrange(6)
            client = f"client {number}"
            match chance.randrange(4):
                case 0 | 1:
                    calls.append(replace(put(at, at, chance.choice("fg")), client=client))
                case 2:
                    calls.append(replace(take(at, at, chance.choice(("f", "g", None))), client=client))
                case _:
                    calls.append(replace(forget(at, at, chance.random() < 0.5), client=client))
            calls[-1] = replace(calls[-1], returned_at=None if until is None else until * US)
        left = end(flows=chance.choice(((), ("c1",))))
        steps = baton_steps(calls, "c1", left, 0)
        expected = any(
            explained(order)
            for count in range(len(steps) + 1)
            for chosen in combinations(steps, count)
            if all(step in chosen for step in steps if step.end != NEVER)
            for order in permutations(chosen)
        )
        outcomes[expected] += 1
        assert (linearize(steps, (), limit=10**6) is None) == expected, calls
    assert min(outcomes.values()) > 100


def explained(order: Sequence[Step[Any]]) -> bool:
    """Tell whether the instants permit the order, and each step is possible as it is recorded."""
    state: Any = ()
    for place, step in enumerate(order):
        state = step.apply(state)
        if state is None or any(later.end < step.start for later in order[place + 1 :]):
            return False
    return True


# Histories as data


def test_a_history_comes_back_from_json_as_it_was() -> None:
    """Fault: a field that is lost on the way, or a tuple that comes back as a list."""
    for _, bad, good in CASES.values():
        for made in (history(*bad), history(*good)):
            text = made.to_json()
            assert History.from_json(text) == made
            assert "\n" not in text
    assert History.from_json(History().to_json()) == History()


def test_json_of_another_format_is_refused() -> None:
    """Fault: another file is read as an empty history, of which everything holds."""
    for text in ("[]", "{}", json.dumps({"format": "something else", "calls": [], "runs": [], "remainder": None})):
        with pytest.raises(ValueError, match="no 'stube history 1'") as raised:
            History.from_json(text)
        assert str(raised.value) == "This is no 'stube history 1'. Pass what History.to_json has written."


def test_an_id_is_given_once() -> None:
    """Fault: two messages of one id, whose deliveries nobody can tell apart, are checked as if they were one."""
    with pytest.raises(ValueError, match="id 'm1'") as raised:
        check(publish(0, 1, "m1", 0), publish(2, 3, "m1", 0))
    assert str(raised.value) == "Two timers or messages of the history have the id 'm1'. Give each one of its own."


def test_the_records_of_several_processes_make_one_history() -> None:
    """Fault: records that are left out, or an earlier remainder that hides the last one."""
    _, bad, _ = CASES["a timer claimed after a reset"]
    parts = [history(one) for one in bad]
    merged = parts[0].merged(*parts[1:], history(end(1)))
    assert merged == history(*bad)
    assert check_history(merged) == check(*bad)
    assert History().merged() == History()
    assert History().begins_at == 0


# The recorder and the random threads


def test_the_recorder_records_calls_results_errors_and_deliveries() -> None:
    """Fault: an operation that is not recorded, a result that is changed, a stamp outside of what it must enclose."""
    with stube.create_registry("virtual", max_pending=2) as backend:
        registry = RecordedRegistry(backend)
        seen: list[tuple[str, Event]] = []
        registry.install_dispatch(lambda cid, event: seen.append((cid, event)))
        registry.put_pending_flow("c1", "f")
        assert registry.pending_flow("c1") == "f"
        assert registry.forget_pending_flow("c1") is False
        registry.subscribe(cid="c1", instance_id="i1", topic="t", event="said")
        assert registry.subscriptions() == {"t": {("c1", "i1"): "said"}}
        assert registry.publish("t", "m1") == 1
        handle = registry.schedule_event(cid="c1", instance_id="i1", delay_ms=5, event=("due", "t1"))
        with pytest.raises(stube.RegistryFull):
            registry.publish("t", "m2")
        backend.advance(2)
        assert (handle.cancel(), handle.cancel()) == (True, False)
        registry.schedule_event(cid="c1", instance_id="i2", delay_ms=50, event=("due", "t2"))
        assert registry.cancel_timers("c1", instance_id="i1") == 0
        registry.schedule_event(cid="c2", instance_id="i2", delay_ms=50, event=("due", "t3"))
        assert registry.unsubscribe(cid="c1", instance_id="i1") == 1
        assert registry.remove_subscriptions_for_cid("c1") == 0
        recorded = registry.history(complete=True)
        registry.reset_state()
        assert registry.history().remainder is None
    assert seen == [("c1", Event("i1", "said", "m1"))]
    assert [str(one) for one in recorded.calls] == [
        "put_pending_flow('c1', 'f')",
        "pending_flow('c1') -> 'f'",
        "forget_pending_flow('c1') -> False",
        "subscribe(cid='c1', instance_id='i1', topic='t', event='said')",
        "subscriptions() -> (('t', 'c1', 'i1'),)",
        "publish('t', 'm1') -> 1",
        "schedule_event(cid='c1', instance_id='i1', delay_ms=5, event=('due', 't1'))",
        "publish('t', 'm2') raised RegistryFull",
        "cancel() of the handle of 't1' -> True",
        "cancel() of the handle of 't1' -> False",
        "schedule_event(cid='c1', instance_id='i2', delay_ms=50, event=('due', 't2'))",
        "cancel_timers('c1', instance_id='i1') -> 0",
        "schedule_event(cid='c2', instance_id='i2', delay_ms=50, event=('due', 't3'))",
        "unsubscribe(cid='c1', instance_id='i1') -> 1",
        "remove_subscriptions_for_cid('c1') -> 0",
    ]
    assert [str(one) for one in recorded.runs] == ["dispatch('c1', Event('i1', 'said', 'm1'))"]
    assert [one.clock_before for one in recorded.calls[-2:]] == [2_000_000, 2_000_000]
    instants = [instant for one in recorded.calls for instant in (one.called_at, one.returned_at)]
    assert instants == sorted(cast(list[int], instants))
    assert recorded.remainder is not None
    assert (sorted(recorded.remainder.timers), recorded.remainder.flows) == (["t2", "t3"], ())
    check_history(recorded, common_topic_order=True).assert_holds()


def test_the_recorder_records_failures_and_the_clock_of_each_delivery() -> None:
    """Fault: a delivery that failed looks like one that returned, or a timer that was early like one that was not."""

    def fail(cid: str, event: Event) -> None:
        if event.name == "fail":
            raise LookupError

    with stube.create_registry("virtual") as backend, failures_unlogged():
        registry = RecordedRegistry(backend)
        registry.install_dispatch(fail)
        for delay_ms, name, identity in ((5, "fail", "t1"), (7, "pass", "t2")):
            registry.schedule_event(cid="c1", instance_id="i1", delay_ms=delay_ms, event=(name, identity))
        backend.run_until_idle()
        recorded = registry.history(complete=True)
    assert [(one.id, one.error, one.clock) for one in recorded.runs] == [
        ("t1", "LookupError", 5_000_000),
        ("t2", "", 7_000_000),
    ]
    assert History.from_json(recorded.to_json()) == recorded


def test_the_recorder_awaits_a_coroutine_function() -> None:
    """Fault: a delivery counts as over when its coroutine is made, or a registry that awaits is refused it."""
    with create("asyncio") as backend:
        registry = RecordedRegistry(backend)
        leave = threading.Event()

        async def stand(cid: str, event: Event) -> None:
            while not leave.is_set():
                await asyncio.sleep(0.001)
            if event.name == "fail":
                raise LookupError

        with failures_unlogged():
            registry.install_dispatch(stand)
            registry.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event=("fail", "t1"))
            registry.schedule_event(cid="c2", instance_id="i1", delay_ms=0, event="tick")
            assert not registry.settle(0.1)
            assert [one.ended_at for one in registry.history().runs] == [None, None]
            leave.set()
            assert registry.settle(30)
        recorded = registry.history(complete=True)
    assert sorted((one.name, one.id, one.error) for one in recorded.runs) == [
        ("fail", "t1", "LookupError"),
        ("tick", "", ""),
    ]


def test_unfinished_calls_and_deliveries_are_in_the_history() -> None:
    """Fault: a delivery that hangs, and what it hangs in, is not recorded until it is over."""
    with stube.create_registry("memory") as backend:
        registry = RecordedRegistry(backend)
        entered, leave = threading.Event(), threading.Event()

        def stand(cid: str, event: Event) -> None:
            entered.set()
            leave.wait(30)

        registry.install_dispatch(stand)
        registry.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event=("due", "t1"))
        assert entered.wait(30)
        recorded = registry.history()
        leave.set()
        assert backend.settle(30)
    assert [(one.id, one.ended_at) for one in recorded.runs] == [("t1", None)]
    assert str(recorded.runs[0]) == "dispatch('c1', Event('i1', 'due', 't1')), which never ended"
    check_history(recorded).assert_holds()


def test_every_thread_is_a_client_of_its_own() -> None:
    """Fault: two threads of one name count as one publisher, whose order they are accused of not having kept."""
    with stube.create_registry("virtual") as backend:
        registry = RecordedRegistry(backend)
        for number in range(3):
            thread = threading.Thread(target=registry.publish, args=("t", f"m{number}"), name="publisher")
            thread.start()
            thread.join(30)
        clients = [one.client for one in registry.history().calls]
    assert clients == ["publisher", "publisher (2)", "publisher (3)"]


def test_promises_follow_the_capabilities() -> None:
    """Fault: a promise is checked that a backend does not make, or its clock is trusted though it is not the
    recorder's."""
    assert promised({"common_topic_order", "virtual_time"}) == {
        "common_topic_order": True, "one_instant_snapshot": False, "clock_error_ns": 0,
    }  # fmt: skip
    assert [*clock_option({"own_clock"})] == ["clock"]
    assert clock_option({"virtual_time"}) == {}
    assert promised(()) == {"common_topic_order": False, "one_instant_snapshot": False, "clock_error_ns": 5_000_000}


@pytest.mark.parametrize("backend", ["memory", "virtual"])
def test_random_histories_have_everything_in_them(backend: str) -> None:
    """Fault: a workload that leaves an operation out, never collides, or ends before the deliveries have come."""
    histories = []
    for seed in range(8):
        with stube.create_registry(backend) as registry:
            histories.append(random_history(registry, seed=seed))
            check_history(histories[-1], **promised(registry.capabilities)).assert_holds()
    calls = [one for recorded in histories for one in recorded.calls]
    assert {one.operation for one in calls} == {
        "put_pending_flow", "pending_flow", "forget_pending_flow", "schedule_event", "cancel_timers", "subscribe",
        "unsubscribe", "remove_subscriptions_for_cid", "publish", "subscriptions", "reset_state", "cancel",
    }  # fmt: skip
    assert len({one.client for one in calls}) >= 5, "four threads, and the handlers"
    assert sum(one.operation == "cancel" and one.result is True for one in calls) > 10
    assert sum(one.operation == "cancel_timers" and bool(one.result) for one in calls) > 10
    assert sum(len(recorded.runs) for recorded in histories) > 100
    remainders = [recorded.remainder for recorded in histories]
    for held in ("timers", "flows", "subscriptions"):
        assert any(getattr(remainder, held) for remainder in remainders), held


class Forgetful(VirtualRegistry):
    """A registry whose `cancel_timers` overlooks every third call: a backend with a fault, for the soak and the
    threads."""

    calls = 0

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        self.calls += 1
        return 0 if self.calls % 3 == 0 else super().cancel_timers(cid, instance_id=instance_id)


class Refusing(VirtualRegistry):
    """A registry with an operation that raises and must not."""

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        raise LookupError("nobody has subscribed")


def forgetful() -> Backend:
    return Forgetful()


def refusing() -> Backend:
    return Refusing()


def test_a_broken_registry_is_found_in_a_random_history() -> None:
    """Fault: a workload whose checker has nothing to find."""
    found = set()
    for seed in range(5):
        with Forgetful() as registry:
            verdict = check_history(random_history(registry, seed=seed, mostly="timers"))
        found |= {violation.guarantee for violation in verdict.violations}
    assert "G5" in found


def test_a_history_that_fails_is_kept() -> None:
    """Fault: an operation that raises in a thread goes unnoticed, or what had been recorded until then is lost."""
    with Refusing() as registry, pytest.raises(HistoryFailed) as raised:
        random_history(registry, seed=7, mostly="topics")
    assert str(raised.value) == "seed 7: nobody has subscribed"
    assert any(one.error == "LookupError" for one in raised.value.history.calls)


# The soak


class Lines:
    """A stream that may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        self.text = ""
        self._terminal = terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_a_soak_without_a_finding_ends_with_0_and_its_figures(
    terminal: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a soak that does nothing, or that keeps silent on what it did."""

    def perform(*arguments: Any, **named: Any) -> int:
        bound = signature.bind(*arguments, **named).arguments
        bound["progress"](bound["steps"])
        return int(bound["steps"])

    signature = inspect.signature(random_programs.soak_programs)  # they take seconds, and have tests of their own
    monkeypatch.setattr(random_programs, "soak_programs", perform)
    out = Lines(terminal=terminal)
    arguments = ["--backend", "virtual", "--minutes", "0.003", "--steps", "1", "--folder", str(tmp_path)]
    arguments += ["--chaos-minutes", "0"]
    assert soak.main(arguments, cast(Any, out)) == 0
    last = out.text.rstrip("\n").split("\n")
    assert last[-1] == "No finding."
    assert "no difference." in out.text
    assert " histories, " in last[-2]
    assert last[-2].endswith("no violation.")
    assert ("\r" in out.text) == terminal
    assert list(tmp_path.iterdir()) == []


def test_a_finding_is_told_and_saved_and_can_be_checked_again(tmp_path: Any) -> None:
    """Fault: a finding without its seed, its story or its history; or an exit code of 0."""
    out = Lines(terminal=False)
    spec = f"{__name__}:forgetful"
    arguments = ["--backend", spec, "--minutes", "1", "--steps", "0", "--folder", str(tmp_path)]
    assert soak.main(arguments, cast(Any, out)) == 1
    (saved,) = tmp_path.iterdir()
    assert f"A finding. {spec} breaks a guarantee in the history of seed " in out.text
    assert f"which is saved as {saved}." in out.text
    assert " is broken: " in out.text
    again = Lines(terminal=False)
    assert soak.main(["--check", str(saved), "--backend", spec], cast(Any, again)) == 1
    assert again.text in out.text


def test_a_history_that_fails_is_a_finding(tmp_path: Any) -> None:
    """Fault: a soak that breaks off with a traceback, without saying with which seed."""
    out = Lines(terminal=False)
    arguments = ["--backend", f"{__name__}:refusing", "--minutes", "1", "--steps", "0", "--folder", str(tmp_path)]
    assert soak.main(arguments, cast(Any, out)) == 1
    assert "nobody has subscribed" in out.text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_difference_from_the_model_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Fault: a program that differs passes, or breaks off the soak without a word."""

    def differ(*arguments: Any, **options: Any) -> int:
        raise AssertionError("the smallest program")

    monkeypatch.setattr(random_programs, "soak_programs", differ)
    out = Lines(terminal=False)
    assert soak.main(["--backend", "virtual", "--steps", "1", "--minutes", "0", "--seed", "4"], cast(Any, out)) == 1
    assert out.text == "\nA finding. virtual differs from the model in programs of seed 4.\nthe smallest program\n"


def test_the_help_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: an option without a word on it; a negative length that soaks for ever or not at all."""
    with pytest.raises(SystemExit) as raised:
        soak.main(["--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    options = (
        "--backend SPEC",
        "--steps",
        "--minutes",
        "--chaos-minutes",
        "--nightly",
        "--seed",
        "--folder",
        "--check FILE",
    )
    for option in options:
        assert option in shown
    with pytest.raises(SystemExit):
        soak.main(["--minutes", "-1"])
    assert "-1 is less than 0. Give 0 or more." in capsys.readouterr().err
