"""Fairness: timers do not wait behind the rest of a large publication (G27, capability `fair`).

In each test a publication is being delivered to many conversations when a timer of another one becomes due. The targets
that begin in between are counted on the thread that delivers the timer, because other threads do not delay it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from stube import Event
from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import Driver, Seen, failures_unlogged
from stube.testing.suite._fixtures import guarantee

TARGETS = 1500  # several hundred on each thread of a backend that delivers on a few
FIRST = 10  # the target whose handler makes the first timer
AT_MOST = 64
BUSY = AT_MOST // 2  # conversations that always have another message and another timer
MANY = 20_000  # timers at most: more than the turns that a publication to so many targets can give


class _Clock:
    """A conversation with a timer beside a publication to many others.

    The handler of one target schedules the timer. Everything that was seen until it was due is left out of the count.

    Args:
        run: the driver of the registry.
        delay_ms: of the timer. A handler that made one with a delay returns when that has passed.
        ticks: how many timers there are at most. The handler of each makes the next one, until all targets had the
            message.
        fails: whether the handlers of the targets raise.
        before: called directly before the first timer is scheduled.
    """

    def __init__(
        self,
        run: Driver,
        *,
        delay_ms: float = 0,
        ticks: int = 1,
        fails: bool = False,
        before: Callable[[], object] | None = None,
    ) -> None:
        self._run = run
        self._before = before
        self._delay_ms = delay_ms
        self._left = ticks
        self._fails = fails
        self._numbers = itertools.count(1)  # of the messages that targets get, on several threads perhaps
        self._delivered = False  # whether all of them have the first message
        self._due_at: list[int] = []  # how many deliveries had begun when each timer was due
        run.recorder.on("said", self._on_message)
        run.recorder.on("tick", lambda cid, event: self._schedule())
        for number in range(TARGETS):
            run.subscribe(cid=f"c{number}")

    def _on_message(self, cid: str, event: Event) -> None:
        number = next(self._numbers)
        self._delivered = self._delivered or number >= TARGETS
        if number == FIRST:
            if self._before is not None:
                self._before()
            self._schedule()
        if self._fails:
            raise LookupError("a handler fails")

    def _schedule(self) -> None:
        if not self._left or (self._due_at and self._delivered):
            return
        self._left -= 1
        due = self._run.now_ms() + self._delay_ms
        self._run.schedule(self._delay_ms, cid="clock")
        while self._delay_ms and self._run.now_ms() <= due:
            pass
        self._due_at.append(len(self._run.recorder.seen))

    def settle(self) -> None:
        """Wait until everything has been delivered."""
        with failures_unlogged():
            self._run.settle()

    def overtaking(self) -> list[int]:
        """Return for each timer how many messages to other conversations began between its instant and its delivery.

        Where deliveries of its own conversation precede it, the longest stretch between two of these counts: if their
        handlers wait for something, others begin meanwhile.
        """
        seen: Sequence[Seen] = list(self._run.recorder.seen)
        ticks = [index for index, each in enumerate(seen) if each.event.name == "tick"]
        assert len(ticks) == len(self._due_at), f"{len(ticks)} timers of {len(self._due_at)} were delivered"
        assert len({each.cid for each in seen if each.event.name == "said"} - {"clock"}) == TARGETS
        found = []
        for due_at, tick in zip(self._due_at, ticks, strict=True):
            stretches = [0]
            for each in seen[due_at:tick]:
                if each.cid == "clock":
                    stretches.append(0)
                elif each.event.name == "said":
                    stretches[-1] += each.thread == seen[tick].thread
            found.append(max(stretches))
        return found


@guarantee("G27")
@requires("fair")
@pytest.mark.parametrize("fails", [False, True], ids=["", "failing"])
def test_a_timer_without_delay_does_not_wait_for_a_publication_to_others(run: Driver, fails: bool) -> None:
    """Fault: the timer waits until the message has come to all of many conversations; or until all of their
    handlers have failed."""
    clock = _Clock(run, fails=fails)
    run.registry.publish("t", "hello")
    clock.settle()
    (between,) = clock.overtaking()
    assert between <= AT_MOST


@guarantee("G27")
@requires("fair", REAL_TIME)
def test_a_timer_that_becomes_due_does_not_wait_for_a_publication_to_others(run: Driver) -> None:
    """Fault: what is due is looked for before a publication, and not while it is being delivered."""
    clock = _Clock(run, delay_ms=2)
    run.registry.publish("t", "hello")
    clock.settle()
    (between,) = clock.overtaking()
    assert between <= AT_MOST


@guarantee("G27", "G2")
@requires("fair")
@pytest.mark.parametrize("delay", [0, pytest.param(2, marks=requires(REAL_TIME))])
def test_a_timer_waits_for_the_earlier_messages_of_its_own_conversation(run: Driver, delay: float) -> None:
    """Fault: the timer overtakes messages that its own conversation was sent before; or these wait behind
    the other targets, and so does the timer."""

    def publish_more() -> None:
        run.registry.publish("other", 2)
        run.registry.publish("t", 3)

    clock = _Clock(run, delay_ms=delay, before=publish_more)
    run.subscribe(cid="clock", event="heard")
    run.subscribe("other", cid="clock", event="heard")
    run.subscribe(cid="clock", event="heard", instance_id="second")
    run.registry.publish("t", 1)
    clock.settle()
    own = [(seen.event.instance_id, seen.event.name, seen.event.payload) for seen in run.recorder.of("clock")]
    assert own.pop()[:2] == ("main", "tick")
    assert own == [
        ("main", "heard", 1), ("second", "heard", 1), ("main", "heard", 2), ("main", "heard", 3), ("second", "heard", 3)
    ]  # fmt: skip
    (between,) = clock.overtaking()
    assert between <= AT_MOST


@guarantee("G27", "G2")
@requires("fair")
@pytest.mark.parametrize("delay", [0, pytest.param(2, marks=requires(REAL_TIME))])
def test_a_timer_does_not_wait_for_the_messages_that_precede_other_timers(run: Driver, delay: float) -> None:
    """Fault: timers have their turn strictly in the order in which they become due, each behind the messages of its own
    conversation, so that the last one waits for the messages of all others."""

    def schedule_others() -> None:
        for number in range(TARGETS):
            run.schedule(delay, cid=f"c{number}", event="rings")

    clock = _Clock(run, delay_ms=delay, before=schedule_others)
    run.registry.publish("t", "hello")
    clock.settle()
    for number in range(TARGETS):
        assert [seen.event.name for seen in run.recorder.of(f"c{number}")] == ["said", "rings"]
    (between,) = clock.overtaking()
    assert between <= AT_MOST


@guarantee("G27")
@requires("fair")
def test_a_timer_that_begins_again_at_once_and_a_publication_take_turns(run: Driver) -> None:
    """Fault: only the first timer has a turn; or a timer that its handler makes anew for the same instant
    has every turn, and the publication waits for ever."""
    clock = _Clock(run, ticks=MANY)
    run.registry.publish("t", "hello")
    clock.settle()
    overtaking = clock.overtaking()
    assert max(overtaking) <= AT_MOST
    assert len(overtaking) < MANY


@guarantee("G27")
@requires("fair")
@pytest.mark.parametrize("step", [0, BUSY], ids=["the same", "new ones"])
def test_conversations_that_always_have_more_and_a_publication_take_turns(run: Driver, step: int) -> None:
    """Fault: timers whose conversations have a message before them go ahead of a publication, and those that their
    handlers make anew follow them without end, in the same conversations or in new ones, so that the publication waits
    for ever."""
    numbers, ticks = itertools.count(1), itertools.count(1)
    delivered: list[bool] = []  # filled when all targets had the message

    def on_message(cid: str, event: Event) -> None:
        number = next(numbers)
        if number == FIRST:
            for busy in range(BUSY):
                begin(busy)
        if number >= TARGETS:
            delivered.append(True)

    def begin(busy: int) -> None:
        cid = f"busy{busy}"
        run.subscribe(cid, cid=cid, event="heard")
        run.registry.publish(cid, "more")
        run.schedule(0, cid=cid)

    def begin_again(cid: str, event: Event) -> None:
        if not delivered and next(ticks) < MANY:
            if step:
                run.registry.remove_subscriptions_for_cid(cid)
            begin(int(cid.removeprefix("busy")) + step)

    run.recorder.on("said", on_message)
    run.recorder.on("tick", begin_again)
    for number in range(TARGETS):
        run.subscribe(cid=f"c{number}")
    run.registry.publish("t", "hello")
    run.settle()
    assert delivered
    assert next(ticks) < MANY
