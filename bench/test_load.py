"""The measurement under load, small but on real servers, and its verdict on a host that loses something."""

from __future__ import annotations

import asyncio
import doctest
import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
pytest.importorskip("sse_starlette", reason="the extra 'bench' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'bench' is not installed")
pytest.importorskip("resource", reason="this system has no limit of open files")

import resource

from typing_extensions import override

from bench import report
from bench.load import __main__ as command
from bench.load import figures
from bench.load.client import Stream, Tally
from bench.results import ResultsError, empty

ROOT = Path(__file__).parents[1]


def host(name: str, **more: Any) -> dict[str, Any]:
    """Return the figures of one host without a fault."""
    late = {"50": 1000.0, "90": 2000.0, "99": 3000.0, "100": 4000.0}
    return {
        "host": name, "backend": "asyncio" if name == figures.STUBE else None, "opening_s": 4.2,
        "handler_us": late, "page_us": {share: 2 * value for share, value in late.items()},
        "spread_us": {"50": 90_000.0, "99": 110_000.0, "100": 120_000.0},
        "ticks": 118_800, "fewest_ticks": 59, "most_ticks": 60, "messages": 60, "cpu": 0.51, "pages_cpu": 0.17,
        "rss": {"before": 50_000_000, "open": 150_000_000, "later": 190_000_000, "gone": 180_000_000},
        "lost": {"clocks that stopped": 0, "streams that were cut": 0}, "held": {"timers": 0, "tasks": 0},
        "gone_s": 1.25, "ledger": "3 accepted == 3 delivered" if name == figures.STUBE else "", **more,
    }  # fmt: skip


@pytest.fixture
def load() -> dict[str, Any]:
    """The content of a file of figures, with both hosts."""
    return {
        "format": 1, "made": "2026-11-26", "machine": {**empty("full", 1)["machine"], "versions": {"uvicorn": "0.54"}},
        "streams": 2000, "seconds": 60.0, "messages_per_second": 1.0, "loop": "asyncio",
        "hosts": [host(figures.STUBE), host(figures.BY_HAND)],
    }  # fmt: skip


# The measurement


def test_neither_host_loses_or_keeps_anything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fault: a host drops a tick or a message, or keeps something of a page that has left; a server writes an error.
    In real time: two seconds of ticks on each host, and the time to start it, warm it up and leave it."""
    file = tmp_path / "figures.json"
    code = command.main(["--streams", "50", "--seconds", "2", "--messages-per-second", "5", "--json", str(file)])
    said = capfd.readouterr()
    assert code == 0, said.err
    load = figures.read(file)
    assert [one["host"] for one in load["hosts"]] == [figures.STUBE, figures.BY_HAND]
    for one in load["hosts"]:
        assert set(one["lost"].values()) == {0}, one
        assert set(one["held"].values()) == {0}, one
        assert one["gone_s"] is not None
        assert one["messages"] >= 1
        assert 0 < one["ticks"] <= 100
        assert 0 <= one["handler_us"]["50"] <= one["page_us"]["50"] <= one["page_us"]["100"]
    assert "conversations in inspect()" in load["hosts"][0]["held"]
    assert {"queues", "clocks", "tasks", "connections"} <= set(load["hosts"][1]["held"])
    assert "nothing lost" in said.out
    complaints = [line for line in said.err.splitlines() if not line.startswith(("stube: ", "by-hand: "))]
    assert complaints == []


def test_an_interrupt_ends_both_processes() -> None:
    """Fault: the server keeps running. In real time, until the server has started and until it has stopped."""
    script = subprocess.Popen(
        [sys.executable, "-m", "bench.load", "--streams", "10"], stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    with script:
        assert script.stderr is not None
        server = int(script.stderr.readline().partition("process ")[2].partition(",")[0])
        script.send_signal(signal.SIGINT)
        assert script.wait(60) == 130
        assert script.stderr.read() == "\nInterrupted. Nothing was written.\n"
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)  # its parent has waited for it, so there is no process of this number


def test_a_server_whose_script_is_killed_stops() -> None:
    """Fault: the server of a killed script runs on and keeps its memory. In real time, until it has stopped."""
    command = [sys.executable, "-m", "bench.load.hosts", figures.BY_HAND]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert int(server.stdout.readline()) > 0
        server.stdin.close()
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streams", "0"], "argument --streams: 0 is not a number of at least 1. Give such a number."),
        (["--seconds", "nan"], "argument --seconds: nan is not a number of at least 1. Give such a number."),
        (["--streams", "many"], "argument --streams: invalid number value: 'many'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a traceback, or a measurement that never ends."""
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_a_low_limit_of_open_files_is_reported_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: the measurement ends with an OSError at the thousandth stream."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "\n2,000 streams need 2,100 open files, and this system allows a process 1,024. "
        "Ask for at most 924 with --streams, or raise the limit: ulimit -Hn 2100.\n"
    )


# The pages


class Wire(asyncio.Transport):
    """The other end of a page's connection."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.closed = False

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.asked.append(bytes(data).partition(b" HTTP")[0])

    @override
    def close(self) -> None:
        self.closed = True


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def event(name: str, data: str) -> bytes:
    return chunk(f"event: {name}\r\ndata: {data}\r\n\r\n")


MOUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nc1"
STREAMS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def page(*received: bytes, step: int = 1 << 20) -> tuple[Stream, Tally, Wire]:
    """Return a page that has received this, `step` bytes at a time."""

    async def run() -> tuple[Stream, Tally, Wire]:
        tally, wire = Tally(begin=100, end=300), Wire()
        stream = Stream(tally)
        stream.connection_made(wire)
        for data in (MOUNTED, STREAMS + b"".join(received)):
            for at in range(0, len(data), step):
                stream.data_received(data[at : at + step])
        assert stream.opened.done()
        return stream, tally, wire

    return asyncio.run(run())


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_page_reads_its_events_in_pieces_of_any_size(step: int) -> None:
    """Fault: an event that comes in two pieces is lost or counted twice; a heartbeat or an id is taken for an event."""
    before = time.monotonic_ns()
    stream, tally, wire = page(
        event("tick", "1 99 99"),
        chunk(": heartbeat\r\n\r\n"),
        chunk("id: x-2\r\nevent: tick\r\ndata: 2 100 107\r\n\r\n"),
        event("said", "1"),
        event("tick", "3 300 301"),
        step=step,
    )
    assert wire.asked == [b"GET /", b"GET /stream/c1"]
    assert (stream.ticks, stream.messages, stream.due, stream.counted) == (3, 1, 300, 1)
    assert list(tally.at_handler) == [7]
    assert tally.at_page[0] >= before - 100
    assert tally.messages[1].streams == 1
    assert tally.messages[1].last >= before
    assert (tally.ticks_out_of_order, tally.messages_out_of_order, tally.cut, tally.gaps) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        ([event("tick", "2 0 0")], "ticks_out_of_order"),
        ([event("tick", "1 0 0"), event("tick", "1 0 0")], "ticks_out_of_order"),
        ([event("said", "2")], "messages_out_of_order"),
        ([event("said", "1"), event("said", "1")], "messages_out_of_order"),
        ([event("gap", '{"missed": 3}')], "gaps"),
        ([chunk("")], "cut"),
    ],
)
def test_a_page_notices_every_kind_of_fault(received: list[bytes], fault: str) -> None:
    """Fault: the measurement reports no loss because it does not detect one."""
    _, tally, _ = page(*received)
    found = {name: getattr(tally, name) for name in ("ticks_out_of_order", "messages_out_of_order", "gaps", "cut")}
    assert {name: count for name, count in found.items() if count} == {fault: 1}


def test_a_page_that_leaves_was_not_cut() -> None:
    """Fault: every stream counts as cut at the end, or no stream ever does."""

    async def run() -> list[int]:
        found = []
        for leaves in (True, False):
            tally = Tally()
            stream = Stream(tally)
            stream.connection_made(Wire())
            stream.data_received(MOUNTED)
            stream.data_received(STREAMS)
            if leaves:
                stream.leave()
            stream.connection_lost(None)
            found.append(tally.cut)
        return found

    assert asyncio.run(run()) == [0, 1]


# The output


def test_a_fault_is_a_sentence_and_a_bold_no(load: dict[str, Any]) -> None:
    """Fault: a stream was cut, or a timer is left, and the table says yes."""
    assert figures.wrong(load) == []
    load["hosts"][1]["lost"]["streams that were cut"] = 3
    load["hosts"][0]["held"]["timers"] = 1
    assert figures.wrong(load) == [
        "Under load the host stube, asyncio has faults: timers: 1.",
        "Under load the host by hand has faults: streams that were cut: 3.",
    ]
    rows = {what: cells for what, *cells in figures.rows(load)}
    assert rows["nothing lost"] == ["yes", "**no**: streams that were cut: 3"]
    assert rows["all gone"] == ["**no**: timers: 1", "yes"]


def test_a_host_that_does_not_keep_up_is_marked(load: dict[str, Any]) -> None:
    """Fault: half of the ticks are missing, and only a reader who multiplies notices it."""
    load["hosts"][1]["ticks"] = 100_000
    rows = {what: cells for what, *cells in figures.rows(load)}
    assert rows["ticks, of 120,000 if no clock drifted"] == [
        "118,800 (99.0%)", "100,000 (83.3%, **it did not keep up**)",
    ]  # fmt: skip


def test_the_report_has_a_section_on_load(load: dict[str, Any], tmp_path: Path) -> None:
    """Fault: the page has no section although there is a file, shows one host's figure under the other's name, or keeps
    the section although there is no file."""
    results = tmp_path / "results.json"
    results.write_text(json.dumps(empty("full", 5)), encoding="utf-8")
    load["hosts"][1]["handler_us"] = {**load["hosts"][1]["handler_us"], "50": 5000.0}
    (tmp_path / "load.json").write_text(json.dumps(load), encoding="utf-8")
    assert report.main([str(results)]) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    section = text[text.index("## Load") : text.index("## Memory")]
    assert section.startswith("## Load\n\n2,000 streams on one process at the same time, for 60 s. ")
    assert "|  | stube, asyncio | by hand |\n| :-- | --: | --: |\n" in section
    for line in (
        "| a tick's lateness when its handler begins, p50 | 1 ms | 5 ms |",
        "| a tick's lateness at the page, max | 8 ms | 8 ms |",
        "| a message, from its acceptance to the last page, p99 | 110 ms | 110 ms |",
        "| memory per conversation, when all are open | 50 kB | 50 kB |",
        "| memory per conversation, 60 s later | 70 kB | 70 kB |",
        "| nothing lost | yes | yes |",
        "| all gone | yes | yes |",
        "| after the last page has left | 1.25 s | 1.25 s |",
    ):
        assert line in section.splitlines(), section
    assert "The ledger of stube, asyncio: 3 accepted == 3 delivered." in section
    assert "uvicorn 0.54" in section
    (tmp_path / "load.json").unlink()
    assert report.main([str(results)]) == 0
    assert "## Load" not in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_a_fault_is_a_warning_of_the_report(load: dict[str, Any], tmp_path: Path) -> None:
    """Fault: a host has lost something, and only a reader of the table learns of it."""
    bad = deepcopy(load)
    bad["hosts"][0]["lost"]["clocks that stopped"] = 7
    assert figures.wrong(bad)[0] in report.write(empty("full", 5), tmp_path, "", bad)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"format": 0}'])
def test_a_file_of_another_format_is_refused(text: str, tmp_path: Path) -> None:
    """Fault: the user gets a traceback about a missing key."""
    file = tmp_path / "load.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match="make load"):
        figures.read(file)


def test_percentiles_are_in_microseconds() -> None:
    """Fault: a figure is in another unit than its name says; no tick leads to a traceback."""
    assert doctest.testmod(figures).attempted >= 2
    assert doctest.testmod(figures).failed == 0
    assert figures.percentiles([]) is None
