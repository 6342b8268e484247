"""Every figure can be measured on every backend, and a target is met only if its figure reaches the limit."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.extras import PARTS
from bench.measuring import Effort, Plan, Row, interleaved, quantile, row, rows_beside
from bench.rows import topics
from bench.rows.idle import Watched, row_of
from bench.rows.sharding import gil_enabled
from bench.subjects import held, installed, opened
from bench.targets import TARGETS, Target, main
from stube import Event, is_virtual

CASES = [(target, backend) for target in TARGETS for backend in installed([*target.judged, *target.also])]


@pytest.mark.parametrize(("target", "backend"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_target_can_be_measured(target: Target, backend: str, effort: Effort) -> None:
    """Fault: a body raises on some backend, or its result is not a figure."""
    rows = list(target.rows(backend, Effort(1, 0.001, idle_s=effort.idle_s)))
    assert bool(rows) == (
        gil_enabled() == (not target.name.startswith("eight-callers-free")) or "eight" not in target.name
    )
    for one in rows:
        assert one.backend == backend
        assert one.figure >= 0
        assert one.peer is None or (one.ratio is not None and one.spread is not None)
        if backend not in target.judged:
            assert (one.must, one.aim, one.met, one.aim_met) == (None, None, None, None)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_results_can_be_measured(part: str, effort: Effort) -> None:
    """Fault: a part raises, or cannot be written as JSON."""
    found = PARTS[part](Effort(1, 0.001, idle_s=effort.idle_s))
    assert json.loads(json.dumps(found)) == found
    assert all(found.values())


def test_a_row_is_judged_by_its_ratio_or_its_figure() -> None:
    """Fault: a target is judged by the wrong number, or in the wrong direction."""
    fast = row("w", "memory", [300.0, 330.0, 310.0], "1/s", peer="p", beside=[200.0, 200.0, 200.0], must=1.5, aim=1.6)
    assert (fast.ratio, fast.spread, fast.met, fast.aim_met) == (1.55, (1.5, 1.65), True, False)
    late = row("w", "memory", [30.0], "us", peer="p", beside=[20.0], sense="<=", must=1.0)
    assert (late.ratio, late.met, late.aim_met) == (1.5, False, None)
    small = row("w", "memory", [153.0], "B", sense="<=", must=260, aim=100)
    assert (small.judged, small.met, small.aim_met) == ("figure", True, False)
    assert (small.unjudged().must, small.met) == (None, None)


def test_a_ratio_is_taken_round_by_round() -> None:
    """Fault: the ratio of the medians is taken, which is wrong if the machine slows down for a while."""
    calls: list[str] = []

    def body(name: str, figure: float) -> float:
        calls.append(name)
        return figure * len(calls)

    figures = interleaved(3, {"own": lambda: body("own", 2.0), "peer": lambda: body("peer", 1.0)})
    assert calls == ["own", "peer"] * 3
    (one,) = rows_beside("w", "memory", figures, "1/s", target="peer", must=1.0)
    assert one.ratio == pytest.approx(1.5)  # of 2/2, 6/4 and 10/6


def test_only_the_named_peer_is_a_target() -> None:
    """Fault: a row beside a peer that no target names is judged as met or missed."""
    rows = list(rows_beside("w", "memory", {"own": [1.0], "a": [2.0], "b": [4.0]}, "1/s", target="b", must=0.5, aim=1))
    assert [(one.peer, one.must, one.met) for one in rows] == [("a", None, None), ("b", 0.5, False)]


def test_the_greatest_is_the_last_quantile() -> None:
    """Fault: a quantile is not one of the values, or its index is off by one."""
    values = [float(number) for number in range(100)]
    assert [quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 99.0]


def test_a_plan_is_the_same_each_time() -> None:
    """Fault: bodies are compared with different timers."""
    one, other = Plan(100, 1, 600, 10), Plan(100, 1, 600, 10)
    timers = list(one.in_seconds)
    assert list(other.in_seconds) == timers
    assert (len(timers), len(one.names)) == (100, 10)
    assert list(one.first(5).in_seconds) == timers[:5]
    assert one.first(5).names == one.names[:5]
    assert list(one.in_milliseconds) == [(cid, delay * 1000) for cid, delay in timers]


@pytest.mark.parametrize("backend", installed(["memory", "virtual", "sharded", "sharded://?shards=8"]))
def test_held_registry_delivers_nothing(backend: str) -> None:
    """Fault: a shard keeps delivering while its registry is held, so that the figure includes deliveries."""
    seen: list[Event] = []
    with opened(backend) as registry, held(registry) as release:
        registry.install_dispatch(lambda cid, event: seen.append(event))
        for number in range(100):
            registry.schedule_event(cid=f"c{number}", instance_id="main", delay_ms=0, event="tick")
        assert registry.settle(0.05) is is_virtual(registry)
        assert len(seen) == (100 if is_virtual(registry) else 0)
        release()
        assert registry.join(60)
        assert len(seen) == 100


def test_a_registry_that_wakes_up_misses_the_target() -> None:
    """Fault: a registry that wakes up is taken for idle because it was watched for less than a minute."""
    assert row_of(Watched("memory", 65.0, 1, 1)).met
    assert not row_of(Watched("memory", 3.0, 1, None)).met
    assert not row_of(Watched("memory", 65.0, 0, 130)).met


def test_one_target_runs_alone(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    """Fault: the command measures other targets, too, or its file differs from its table."""
    file = tmp_path / "rows.json"
    main(["--only", "batons", "--rounds", "1", "--scale", "0.001", "--backend", "virtual", "--json", str(file)])
    (found,) = json.loads(file.read_text(encoding="utf-8"))
    assert list(found) == list(asdict(Row("", "", 0.0, "")))
    assert found["backend"] == "virtual"
    assert found["work"] in capsys.readouterr().out


def test_a_row_has_the_same_name_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the name says what was the cheapest this time, so that a second run adds a row of its own and the worse of
    the two does not count."""

    def rows(cheapest: int) -> list[tuple[str, str | None]]:
        monkeypatch.setattr(topics, "_publish_ns", lambda backend, size, count: 1.0 + (size != cheapest))
        return [(found.work, found.peer) for found in topics.publish("memory", Effort(rounds=1))]

    assert rows(cheapest=1) == rows(cheapest=10_000)
