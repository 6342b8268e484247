"""The event loops that serve asynchronous backends in the suite."""

from __future__ import annotations

import logging
import threading

import pytest

from stube.testing._harness import loops


@pytest.fixture(autouse=True)
def nothing_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_in_use", {})


def _serving() -> set[threading.Thread]:
    return set(threading.enumerate()) - set(loops.live_threads())


def test_there_is_one_loop_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a run that goes from one kind to the other and back leaves a thread and its files for every turn."""
    pytest.importorskip("uvloop", reason="needs the extra 'bench', where uvloop exists")
    before = _serving()
    for kind in ["asyncio", "uvloop"] * 3:
        monkeypatch.setenv(loops.LOOP, kind)
        loops.create("asyncio").close()
    assert sorted(thread.name for thread in _serving() - before) == ["stube-testing-asyncio", "stube-testing-uvloop"]


def test_loop_threads_are_not_counted_as_a_registrys_threads() -> None:
    """Fault: the thread is uncounted until somebody logs from it, and a test in which that happens finds a leak."""
    before = loops.live_threads()
    registry = loops.create("asyncio")
    registry.install_dispatch(lambda cid, event: logging.getLogger("test").error("from the loop"))
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert registry.settle(30)
    assert registry.close(30)
    assert loops.live_threads() == before


def test_blocked_loop_is_replaced_by_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: one test that blocks the loop for ever takes every later one with it."""
    entered, release = threading.Event(), threading.Event()

    def dispatch(cid: str, event: object) -> None:
        entered.set()
        release.wait(30)

    held_up = loops.create("asyncio")
    held_up.install_dispatch(dispatch)
    held_up.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert entered.wait(30)
    try:
        monkeypatch.setattr(loops, "_PATIENCE", 0.1)  # the loop is blocked, so its answer would never come
        other = loops.create("asyncio")
        other.install_dispatch(lambda cid, event: None)
        other.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        assert other.settle(30)
        assert other.close(30)
    finally:
        release.set()
    assert held_up.close(30)
