"""`cancel_timers` and a handle's `cancel()`: final, counted, never interrupting."""

from __future__ import annotations

from typing import Any

from stube import Stats
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import HOUR, NOT_A_NAME, guarantee, refused


@guarantee("G5", "G21")
def test_cancel_timers_cancels_and_counts_one_conversation_only(run: Driver) -> None:
    """Fault: another conversation's timers are cancelled too, or instances are counted instead of timers."""
    for delay in (1, 2, HOUR):
        for instance_id in ("i1", "i2"):
            run.schedule(delay, cid="c1", instance_id=instance_id)
            run.schedule(delay, cid="c2", instance_id=instance_id)
    # On a real clock some timers may have begun by now; those are delivered and not counted as cancelled.
    cancelled = run.registry.cancel_timers("c1")
    assert run.registry.cancel_timers("c1") == 0
    run.pass_time(2)
    assert len(run.recorder.of("c1")) == 6 - cancelled
    assert 2 <= cancelled <= 6
    assert len(run.recorder.of("c2")) == 4
    assert run.stats() == Stats(accepted=12, delivered=10 - cancelled, cancelled=cancelled, timers=2)


@guarantee("G21")
def test_cancel_timers_with_an_instance_cancels_only_its_timers(run: Driver) -> None:
    """Fault: `instance_id` is ignored, or another conversation's instance of the same name loses its timers."""
    for cid in ("c1", "c2"):
        for instance_id in ("i1", "i1", "i2"):
            run.schedule(HOUR, cid=cid, instance_id=instance_id)
    assert run.registry.cancel_timers("c1", instance_id="i1") == 2
    assert run.registry.cancel_timers("c1", instance_id="i1") == 0
    assert run.registry.cancel_timers("c1", instance_id="never") == 0
    assert [timer.instance_id for timer in run.registry.inspect("c1")["c1"].timers] == ["i2"]
    assert len(run.registry.inspect("c2")["c2"].timers) == 3
    assert run.registry.cancel_timers("c1") == 1
    assert run.registry.cancel_timers("never") == 0
    assert run.stats() == Stats(accepted=6, cancelled=3, timers=3)


@guarantee("G5")
def test_a_handle_cancels_its_own_timer_once(run: Driver) -> None:
    """Fault: `cancel()` returns True twice, or for a timer that has fired or that `cancel_timers` has cancelled; or it
    cancels the oldest timer of its instance."""
    second, first = run.schedule(HOUR, "second"), run.schedule(HOUR, "first")
    third, fired = run.schedule(HOUR, "third"), run.schedule(0, "fired")
    run.settle()
    assert first.cancel() is True
    assert first.cancel() is False
    assert fired.cancel() is False
    assert [timer.event for timer in run.registry.inspect("c1")["c1"].timers] == ["second", "third"]
    assert run.registry.cancel_timers("c1") == 2
    assert second.cancel() is False
    assert third.cancel() is False
    assert run.recorder.names == ["fired"]
    assert run.stats() == Stats(accepted=4, delivered=1, cancelled=3)


@guarantee("G15")
def test_cancel_timers_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: an empty instance means "all of them", which a caller with an empty variable does not mean."""
    run.schedule(HOUR)
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "cid", registry=run.registry):
            run.registry.cancel_timers(wrong)
        instance_id: Any = 0.0 if wrong is None else wrong  # None means every instance
        with refused(instance_id, error, "instance_id", registry=run.registry):
            run.registry.cancel_timers("c1", instance_id=instance_id)
