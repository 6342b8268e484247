"""`reset_state`: the registry forgets everything but the dispatch."""

from __future__ import annotations

import threading

from stube import ConversationInfo, Event, Stats
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import HOUR, guarantee


@guarantee("G18", "G21")
def test_reset_state_forgets_everything_but_the_dispatch(run: Driver) -> None:
    """Fault: one of the three kinds of state survives, the counters start again at 0, or the dispatch is removed."""
    before = run.sizes() if "sizes" in run.registry.capabilities else None
    run.schedule(0, "early")
    run.settle()
    for cid in ("c1", "c2"):
        run.registry.put_pending_flow(cid, "flow")
        run.subscribe("t", cid=cid)
        for delay in (HOUR, HOUR + 5, 10**30):
            run.schedule(delay, "victim", cid=cid)
    cancelled = run.registry.cancel_timers("c2")
    run.registry.reset_state()
    assert cancelled == 3
    assert run.registry.inspect() == {}
    assert run.registry.subscriptions() == {}
    assert run.registry.pending_flow("c1") is None
    assert run.registry.publish("t", 1) == 0
    assert run.registry.cancel_timers("c1") == 0
    run.pass_time(5)
    assert run.recorder.names == ["early"]
    assert run.stats() == Stats(accepted=7, delivered=1, cancelled=3, dropped=3)
    run.schedule(0, "new")
    run.subscribe("t", "said", cid="c1")
    assert run.registry.publish("t", 2) == 1
    run.settle()
    assert run.recorder.names[-2:] == ["new", "said"]
    run.registry.reset_state()
    assert before is None or run.sizes() == before


@guarantee("G18")
def test_nothing_accepted_before_a_reset_begins_after_it(run: Driver) -> None:
    """Fault: a due batch or a queue outlives the reset; or what is accepted after the reset is lost too."""
    run.subscribe("t", cid="c1")
    with run.held("c1"):
        handle = run.schedule(0, "due")
        run.schedule(1, "soon")
        for number in range(5):
            run.registry.publish("t", number)
        run.registry.reset_state()
        run.registry.reset_state()
        assert handle.cancel() is False
        run.schedule(0, "new")
    run.pass_time(1)
    assert run.recorder.names == ["new"]
    assert run.stats() == Stats(accepted=8, delivered=1, dropped=7)


@guarantee("G18", "G6", "G20")
def test_a_handler_that_resets_runs_to_its_end(run: Driver) -> None:
    """Fault: the rest of the batch begins after the reset, or the handler's own fate is counted twice."""
    log: list[str] = []

    def reset(cid: str, event: Event) -> None:
        run.registry.reset_state()
        run.schedule(0, "new")
        log.append("finished")

    run.recorder.on("reset", reset)
    run.subscribe("t", cid="c1")
    with run.held("c1"):
        run.schedule(0, "reset")
        run.schedule(0, "victim")
        run.registry.publish("t", 1)
    run.settle()
    assert log == ["finished"]
    assert run.recorder.names == ["reset", "new"]
    assert run.stats() == Stats(accepted=4, delivered=2, dropped=2)


@guarantee("G18", "G5")
def test_a_handle_from_before_a_reset_cancels_nothing_behind_it(run: Driver) -> None:
    """Fault: a handle finds its timer by a number, and the numbers start again at a reset."""
    handles = [run.schedule(HOUR, "early") for _ in range(3)]
    run.registry.reset_state()
    for _ in range(3):
        run.schedule(HOUR, "late")
    assert [handle.cancel() for handle in handles] == [False] * 3
    assert run.registry.cancel_timers("c1") == 3


@guarantee("G18", "G20")
def test_a_reset_during_a_fan_out_drops_the_remaining_targets(run: Driver) -> None:
    """Fault: the remaining targets of a fan-out outlive the reset, or are counted twice; or `inspect` no longer shows
    the delivery that still runs."""
    forgotten = threading.Event()
    first: list[int] = []
    late: list[int] = []
    shown: list[tuple[str, ConversationInfo | None]] = []

    def said(cid: str, event: Event) -> None:
        if forgotten.is_set():
            late.append(threading.get_ident())
        run.registry.reset_state()
        if not forgotten.is_set():
            first.append(threading.get_ident())
            forgotten.set()
        shown.append((cid, run.registry.inspect(cid).get(cid)))

    run.recorder.on("said", said)
    for number in range(20):
        run.subscribe("t", cid=f"c{number}")
    assert run.registry.publish("t", "message") == 20
    run.settle()
    heard = len(run.recorder.cids)
    assert len(shown) == heard, "settle() does not wait for the delivery that runs during the reset"
    # Another delivery thread may enter a handler that it had begun before the reset; each thread at most one.
    assert not set(first) & set(late)
    assert len(late) == len(set(late))
    assert shown == [(cid, ConversationInfo(running=1)) for cid, _ in shown]
    assert run.stats() == Stats(accepted=20, delivered=heard, dropped=20 - heard)


@guarantee("G6", "G18")
def test_a_reset_does_not_wait_for_a_running_handler(run: Driver) -> None:
    """Fault: the reset waits for the running delivery (here without end), or counts it as dropped."""
    gate = run.recorder.gate()
    ended: list[bool] = []

    def stand(cid: str, event: Event) -> None:
        gate.pass_through()
        ended.append(True)

    run.recorder.on("stand", stand)
    run.schedule(0, "stand")
    with run.delivering():
        gate.wait_entered()
        run.registry.reset_state()
        assert ended == [], "the reset waited for the running handler"
    run.settle()
    assert run.stats() == Stats(accepted=1, delivered=1)
