"""The report: a missed target is shown as missed, and everything that was measured is on the page."""

from __future__ import annotations

import doctest
import json
import re
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

from matplotlib.text import Text

from bench import pictures, plots, report, units

Results = dict[str, Any]


def row(work: str, *, figure: float = 100.0, unit: str = "1/s", **fields: Any) -> Results:
    """Return a row that is judged by its figure, or by the given ratio, as bench/measuring.py does it."""
    made: Results = {
        "work": work, "backend": "memory", "figure": figure, "unit": unit, "peer": None, "peer_figure": None,
        "ratio": None, "spread": None, "judged": "figure", "sense": ">=", "must": None, "aim": None, "detail": "",
        **fields,
    }  # fmt: skip
    value = made["ratio"] if made["judged"] == "ratio" else made["figure"]
    for name, limit in (("met", made["must"]), ("aim_met", made["aim"])):
        good = value is not None and limit is not None and (value >= limit if made["sense"] == ">=" else value <= limit)
        made.setdefault(name, None if value is None or limit is None else good)
    return made


def beside(work: str, value: float | None, **fields: Any) -> Results:
    """Return a row that is judged by its ratio."""
    own: Results = {"peer": "asyncio", "peer_figure": 50.0, "judged": "ratio", "ratio": value, "spread": [0.9, 4.0]}
    return row(work, **{**own, **fields})


MACHINE = {
    "cpu": "A processor", "cores": 2, "system": "Linux", "python": "CPython 3.11.7", "gil": True,
    "versions": {"uvloop": "0.23.0"},
}  # fmt: skip
SIZES = [1000, 10_000, 100_000]


@pytest.fixture
def results() -> Results:
    """Results with an entry of each kind."""
    return {
        "format": 1, "mode": "full", "made": "2026-11-25", "rounds": 5, "machine": deepcopy(MACHINE),
        "targets": [
            beside("scheduling", 1.6, must=1.5, aim=2.0, spread=[1.4, 1.7], figure=612_345.0, peer_figure=405_000.0),
            beside("firing", 1.2, must=2.0, aim=3.0),
            row("bytes", figure=153.4, unit="B", must=260.0, aim=200.0, sense="<=", detail="10,000 of them"),
            row("publishing", figure=980.0, unit="ns", must=1000.0, sense="<="),
            beside("delivering", 0.66, aim=1.0, peer="pyee, a bare callback"),
        ],
        "comparisons": [beside("scheduling", 78.5, peer="threading.Timer", detail="a thread each")],
        "series": {
            "cost_by_size": [
                {"label": f"schedule_event, {name}", "backend": backend, "x": SIZES, "y": figures,
                 "x_unit": "pending timers", "y_unit": "us"}
                for name, backend, figures in (("memory", "memory", [1.6, 1.7, 1.8]), ("uvloop", "", [1.8, 1.9, 2.4]))
            ],
            "cancel_cost_by_size": [
                {"label": "cancel_timers, memory", "backend": "memory", "x": SIZES, "y": [0.3, 0.3, 0.4],
                 "x_unit": "pending timers", "y_unit": "us"}
            ],
            "deliveries_by_fan_out": [
                {"label": name, "backend": "", "x": [1, 10, 100][: len(figures)], "y": figures,
                 "x_unit": "subscribers", "y_unit": "1/s"}
                for name, figures in (("memory", [150e3, 1.3e6, 5.5e6]), ("Django Channels, in memory", [20e3, 30e3]))
            ],
            "lateness": [
                {"label": name, "load": load, "percentiles": {"50": 94, "90": 130, "99": 161, "100": 420}}
                for name in ("memory", "asyncio") for load in ("idle", "loaded")
            ],
            "bytes_per_timer": [{"label": "memory", "x": SIZES, "y": [260, 153, 150]}],
        },
        "memory": [
            {"what": "a timer", "backend": name, "bytes": size}
            for name, size in (("memory", 153.0), ("asyncio", 370.0))
        ],
        "start_up": [{"what": "import stube", "ms": 14.23}],
        "wakeups": [{"backend": "memory", "seconds": 65.0, "looks": 3, "switches": None}],
        "operations": [
            {"name": "stats", "group": "snapshots", "backend": name, "size": size, "median_us": 3.21, "iqr_us": 0.3,
             "rounds": 20}
            for name in ("virtual", "memory") for size in (None, 1_000_000)
        ],
        "free_threaded": {
            "machine": {**MACHINE, "gil": False, "python": "CPython 3.14.0"},
            "targets": [beside("eight threads", 1.4, backend="sharded", peer="memory", must=1.3, aim=1.6)],
        },
    }  # fmt: skip


class Maker:
    """Writes the report and keeps its warnings."""

    def __init__(self, results: Results, folder: Path) -> None:
        self._results = results
        self._folder = folder
        self.warnings: list[str] = []

    def __call__(self, analysis: str = "") -> str:
        self.warnings = report.write(self._results, self._folder, analysis)
        text = (self._folder / "RESULTS.md").read_text(encoding="utf-8")
        return text.replace("\u00a0", " ")  # the space that keeps a figure and its unit in one line


@pytest.fixture
def whole(tmp_path: Path, results: Results) -> Maker:
    """The report with its pictures."""
    return Maker(results, tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the drawing of pictures, which takes a second."""

    def draw(series: Results, own: list[str], folder: Path) -> dict[str, list[Path]]:
        measured = [name for name, picture in pictures.PICTURES.items() if picture.panels(series)]
        return {name: [Path(f"plots/{name}-{theme.name}.svg") for theme in plots.THEMES] for name in measured}

    monkeypatch.setattr(pictures, "draw", draw)


@pytest.fixture
def page(whole: Maker, undrawn: None) -> Maker:
    """The report without its pictures."""
    return whole


def cells(text: str, work: str) -> list[str]:
    """Return the cells of the first row of a table that begins with this."""
    (line, *_) = [line for line in text.splitlines() if line.lstrip("| *").startswith(work)]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# Targets that are met and missed


def test_a_target_is_shown_with_its_figures_and_limits(page: Maker) -> None:
    """Fault: a column shows another field."""
    assert cells(page(), "scheduling") == [
        "scheduling", "`memory`", "612 k/s", "asyncio: 405 k/s", "1.60<br><sub>1.40 to 1.70</sub>", "≥ 1.5", "≥ 2",
        "met, aim not reached",
    ]  # fmt: skip
    assert cells(page(), "bytes") == [
        "bytes<br><sub>10,000 of them</sub>", "`memory`", "153 B", "", "", "≤ 260 B", "≤ 200 B", "met, aim reached",
    ]  # fmt: skip
    assert cells(page(), "publishing")[-3:] == ["≤ 1 µs", "", "met"]
    assert cells(page(), "delivering")[-3:] == ["", "≥ 1", "aim not reached"]


def test_a_miss_is_bold_and_named_at_the_top(page: Maker) -> None:
    """Fault: a miss looks like the rest, or is left out of the sum."""
    text = page()
    assert "**3 of 4 musts met, 1 of 4 aims.** Missed: firing (`memory`)." in text
    assert cells(text, "firing") == [
        "**firing**", "**`memory`**", "**100 /s**", "**asyncio: 50 /s**", "**1.20<br><sub>0.90 to 4.00</sub>**",
        "**≥ 2**", "**≥ 3**", "**missed**",
    ]  # fmt: skip
    assert text.count("**missed**") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"met": True},
            "The row 'firing' says met=True, and ratio 1.2 against >= 2.0 is False. "
            "Measure again, or fix the code that judges rows.",
        ),
        (
            {"met": None},
            "The row 'firing' says met=None, and ratio 1.2 against >= 2.0 is False. "
            "Measure again, or fix the code that judges rows.",
        ),
        (
            {"aim_met": True},
            "The row 'firing' says aim_met=True, and ratio 1.2 against >= 3.0 is False. "
            "Measure again, or fix the code that judges rows.",
        ),
        (
            {"unit": "furlongs"},
            "The row 'firing' has the unit 'furlongs'. Use one of 1/s, B, count, ms, ns, s, us.",
        ),
    ],
)
def test_results_that_contradict_themselves_are_refused(
    page: Maker, results: Results, fields: Results, message: str, tmp_path: Path
) -> None:
    """Fault: a target that is missed is shown as met because a flag says so."""
    results["targets"][1].update(fields)
    with pytest.raises(ValueError, match="firing") as raised:
        page()
    assert str(raised.value) == message
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_field_that_is_missing_is_named(page: Maker, results: Results) -> None:
    """Fault: the user gets a traceback about a key that does not name the row."""
    del results["targets"][0]["spread"]
    with pytest.raises(ValueError, match="spread") as raised:
        page()
    assert str(raised.value) == "The row 'scheduling' has no 'spread'. Measure again."


def test_a_target_that_could_not_be_measured_is_not_met(page: Maker, results: Results) -> None:
    """Fault: a peer is not installed, there is no ratio, and the target is not reported as missed."""
    results["targets"][0] = beside("scheduling", None, must=1.5, peer=None, peer_figure=None, spread=None)
    text = page()
    assert cells(text, "scheduling")[-1] == "**not measured**"
    assert "**2 of 4 musts met, 1 of 3 aims.** Missed: scheduling (`memory`); firing (`memory`)." in text


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (beside("close", 1.4961, must=1.5), "**1.496<br><sub>0.90 to 4.00</sub>**"),
        (beside("close", 1.5049, must=1.5), "1.505<br><sub>0.90 to 4.00</sub>"),
        (beside("close", 1.0049, must=1.0, sense="<="), "**1.005<br><sub>0.90 to 4.00</sub>**"),
        (row("close", figure=1_499_900.0, must=1.5e6), "**1.4999 M/s**"),
        (row("close", figure=1000.4, unit="ns", must=1000.0, sense="<="), "**1.0004 µs**"),
    ],
)
def test_a_near_miss_does_not_look_like_a_hit(page: Maker, results: Results, target: Results, shown: str) -> None:
    """Fault: 1.496 is shown as 1.50 beside the 1.5 that it misses."""
    results["targets"].append(target)
    assert shown in cells(page(), "close")


def test_a_miss_without_the_gil_is_a_miss(page: Maker, results: Results) -> None:
    """Fault: the second table is not judged, or a miss without an analysis is not reported for it."""
    results["free_threaded"]["targets"] = [beside("eight threads", 1.1, backend="sharded", must=1.3)]
    text = page("Nothing.")
    tail = text[text.index("## Without the GIL") :]
    assert "**0 of 1 musts met, 0 of 0 aims.** Missed: eight threads (`sharded`)." in tail
    assert cells(tail, "eight threads")[-1] == "**missed**"
    assert "A target is missed and bench/analysis.md does not mention it: eight threads." in page.warnings


# The analysis


def test_the_analysis_is_included_unchanged(page: Maker) -> None:
    """Fault: the text written by hand is shortened, or overwritten by the next run."""
    analysis = "# Analysis\n\nWhy **firing** is slow:\n\n```text\n# no heading\n```\n\nThat is why."
    text = page(analysis)
    section = text[text.index("## Analysis") : text.index("## Beside others")]
    assert section == "## Analysis\n\nWhy **firing** is slow:\n\n```text\n# no heading\n```\n\nThat is why.\n\n"
    assert page.warnings == []


@pytest.mark.parametrize("analysis", ["", "Of *other* things."])
def test_a_miss_without_an_analysis_is_named(page: Maker, analysis: str) -> None:
    """Fault: a new miss without an explanation is not reported."""
    text = page(analysis)
    assert "**Not yet analysed:** firing." in text
    assert page.warnings == ["A target is missed and bench/analysis.md does not mention it: firing."]


def test_a_work_is_found_in_the_analysis_in_any_markup(page: Maker, results: Results) -> None:
    """Fault: the analysis of a miss is not found because of code marks, capitals or a line break."""
    results["targets"][1]["work"] = "firing of overdue timers, all together"
    page("### `Firing` of overdue\ntimers, all together")
    assert page.warnings == []


def test_no_analysis_is_needed_without_a_miss(page: Maker, results: Results) -> None:
    """Fault: the section is empty and looks forgotten."""
    del results["targets"][1]
    assert "## Analysis\n\nNo target is missed.\n\n" in page()


# Completeness


def test_everything_that_was_measured_is_on_the_page(page: Maker) -> None:
    """Fault: a table is missing, or shows one backend's figure under another's name."""
    text = page()
    assert "- A processor, 2 cores, Linux\n- CPython 3.11.7, with the GIL; uvloop 0.23.0\n" in text
    assert "- measured on 2026-11-25, in 5 rounds\n" in text
    assert "runs of these rounds" not in text
    assert cells(text, "threading.Timer") == [
        "threading.Timer",
        "50 /s",
        "78.5<br><sub>0.90 to 4.00</sub>",
        "a thread each",
    ]
    assert "| what | `memory` | asyncio |" in text
    assert cells(text, "a timer") == ["a timer", "153 B", "370 B"]
    assert cells(text, "import stube") == ["import stube", "14.2 ms"]
    assert cells(text, "memory |") == ["memory", "65 s", "3", "-"]
    assert "### snapshots\n\n| operation | `memory` | `virtual` |" in text
    assert cells(text, "stats |") == ["stats", "3.2 µs (9%)", "3.2 µs (9%)"]
    assert cells(text, "stats, 1,000,000") == ["stats, 1,000,000", "3.2 µs (9%)", "3.2 µs (9%)"]
    assert "- CPython 3.14.0, without the GIL; uvloop 0.23.0" in text
    for name in pictures.PICTURES:
        assert f'srcset="plots/{name}-dark.svg"' in text
        assert f'src="plots/{name}-light.svg"' in text


def test_a_bar_in_a_name_is_escaped_in_a_table(page: Maker, results: Results) -> None:
    """Fault: a bar in a name makes a column of its own."""
    results["start_up"][0]["what"] = "import stube | nothing else"
    assert "| import stube \\| nothing else | 14.2 ms |" in page()


@pytest.mark.parametrize("part", ["comparisons", "memory", "start_up", "wakeups", "operations", "free_threaded"])
def test_a_part_that_was_not_measured_is_reported(page: Maker, results: Results, part: str) -> None:
    """Fault: a part is left out silently, or its absence leads to a traceback."""
    del results[part]
    assert page("firing").count("Not measured in this run.") == 1
    assert page.warnings == [f"The results have no {part!r}."]


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_a_series_that_was_not_measured_has_no_picture(page: Maker, results: Results, name: str, empty: bool) -> None:
    """Fault: the page refers to a picture that does not exist, or a missing series leads to a traceback."""
    for key in [key for key in results["series"] if key.endswith(name.replace("-", "_"))]:
        if empty:
            results["series"][key] = []
        else:
            del results["series"][key]
    text = page("firing")
    assert f"{name}-light.svg" not in text
    assert text.count("Not measured in this run.") == 1
    assert page.warnings == [f"There is no picture {name!r}, because its series was not measured."]


def test_a_picture_of_an_earlier_run_is_removed(tmp_path: Path) -> None:
    """Fault: an old picture stays in the folder, or the next page shows it with another run's figures."""
    (tmp_path / "plots").mkdir()
    for name in ("lateness-light.svg", "lateness-dark.svg", "mine.svg"):
        (tmp_path / "plots" / name).write_text("old", encoding="utf-8")
    assert pictures.draw({}, ["memory"], tmp_path) == {}
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["mine.svg"]


def test_a_quick_run_says_so(page: Maker, results: Results) -> None:
    """Fault: figures of small sizes are taken for those of a full run."""
    assert "This is a" not in page()
    results["mode"] = "quick"
    assert "**This is a quick run: small sizes and few rounds, " in page()


def test_the_page_says_that_the_worse_run_is_shown(page: Maker, results: Results) -> None:
    """Fault: a reader takes the worse of two runs for the median of all rounds."""
    results["runs"] = 2
    assert "- the targets in 2 runs of these rounds, of which the tables show the worse one" in page()


def test_the_same_results_give_the_same_bytes(whole: Maker, tmp_path: Path) -> None:
    """Fault: a picture contains a date or a random name, so that every run changes every file."""
    files = ["RESULTS.md", *(f"plots/{name}-{theme.name}.svg" for name in pictures.PICTURES for theme in plots.THEMES)]
    whole()
    first = {name: (tmp_path / name).read_bytes() for name in files}
    whole()
    assert {name: (tmp_path / name).read_bytes() for name in files} == first
    for name, content in first.items():
        if name.endswith(".svg"):
            assert b"<dc:date>" not in content
            assert b"matplotlib" not in content.lower().replace(b"matplotlib.axis", b"")


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_beside_the_results(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: the report is written to another folder; the exit code is 0 although there is no report."""
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    analysis = ["--analysis", str(tmp_path / "analysis.md")]
    assert report.main([str(file), *analysis]) == 0
    told = capsys.readouterr()
    assert told.out == f"Written: {tmp_path / 'RESULTS.md'}, and its pictures in {tmp_path / 'plots'}.\n"
    assert told.err == "A target is missed and bench/analysis.md does not mention it: firing.\n"
    assert report.main([str(file), "--into", str(tmp_path / "a" / "b"), *analysis]) == 0
    assert (tmp_path / "a" / "b" / "RESULTS.md").read_bytes() == (tmp_path / "RESULTS.md").read_bytes()
    (tmp_path / "analysis.md").write_text("firing", encoding="utf-8")
    capsys.readouterr()
    assert report.main([str(file), *analysis]) == 0
    assert capsys.readouterr().err == ""


def test_results_that_cannot_be_read_are_refused(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: results of another format are shown as if they were of this one."""
    file = tmp_path / "results.json"
    file.write_text(json.dumps({**results, "format": 2}), encoding="utf-8")
    assert report.main([str(file)]) == 1
    assert capsys.readouterr().err == (
        f"report.py: {file} is not a file of results in format 1. Name one that bench/run.py has written.\n"
    )
    assert report.main([str(tmp_path / "nothing.json")]) == 1
    file.write_text("no JSON", encoding="utf-8")
    assert report.main([str(file)]) == 1


# The pictures


def drawn(results: Results, name: str, theme: plots.Theme = plots.THEMES[0]) -> Any:
    """Return the figure of one picture, laid out."""
    picture = pictures.PICTURES[name]
    style = plots.Style(("memory", "virtual", "sharded"))
    figure = picture.draw(picture.panels(results["series"]), style, picture.title, picture.better, theme)
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("cost-by-size", [("schedule_event", ["memory", "uvloop"]), ("cancel_timers", ["memory"])]),
        ("deliveries-by-fan-out", [("", ["memory", "Django Channels, in memory"])]),
        ("bytes-per-timer", [("", ["memory"])]),
    ],
)
def test_every_curve_is_drawn_and_named(results: Results, name: str, panels: list[tuple[str, list[str]]]) -> None:
    """Fault: a series is not drawn, has the figures of another one, or has no name."""
    axes = drawn(results, name).axes
    listed = [
        entry for key, entries in results["series"].items() if key.endswith(name.replace("-", "_")) for entry in entries
    ]
    curves = [line for axis in axes for line in axis.lines]
    assert [[*map(list, line.get_data())] for line in curves] == [[entry["x"], entry["y"]] for entry in listed]
    found = [(axis.get_title(loc="left"), sorted(text.get_text() for text in axis.texts)) for axis in axes]
    assert found == [(title, sorted(names)) for title, names in panels]


def test_every_percentile_is_drawn(results: Results) -> None:
    """Fault: a load or a percentile is left out."""
    axes = drawn(results, "lateness").axes
    assert [axis.get_title(loc="left") for axis in axes] == ["on an idle machine", "beside a thread that computes"]
    for axis in axes:
        assert [label.get_text() for label in axis.get_yticklabels()] == ["memory", "asyncio"]
        for number in range(2):
            at = [float(line.get_xdata()[0]) for line in axis.lines if [*line.get_ydata()] == [number]]
            assert at == [94, 130, 161, 420]


def test_an_early_timer_is_drawn_at_the_edge_with_a_note(results: Results) -> None:
    """Fault: a figure below zero disappears on a logarithmic scale, so that an early timer is not shown."""
    for entry in results["series"]["lateness"]:
        if entry["label"] == "asyncio":
            entry["percentiles"] = {"50": -80, "90": 130, "99": 161, "100": 4200}
    for axis in drawn(results, "lateness").axes:
        edge = axis.get_xlim()[0]
        assert [float(line.get_xdata()[0]) for line in axis.lines if [*line.get_ydata()] == [1]][:2] == [edge, 130]
        assert [(text.get_text(), text.xy) for text in axis.texts] == [("early", (edge, 1))]


def test_a_free_threaded_run_is_optional(page: Maker, results: Results) -> None:
    """Fault: every run without free-threaded figures, which is the usual case, gets a warning."""
    results["free_threaded"] = None
    assert "## Without the GIL\n\nNot measured in this run." in page("firing")
    assert page.warnings == []


@pytest.mark.parametrize("name", list(pictures.PICTURES))
@pytest.mark.parametrize("theme", plots.THEMES, ids=lambda theme: theme.name)
def test_a_picture_says_what_is_better_in_plain_words(results: Results, name: str, theme: plots.Theme) -> None:
    """Fault: a reader takes a high line for a good one; a tick reads 10^6; two ticks read the same."""
    figure = drawn(results, name, theme)
    title, better = (text.get_text() for text in figure.texts[:2])
    assert title == pictures.PICTURES[name].title
    assert better.startswith("More is better." if name == "deliveries-by-fan-out" else "Less is better")
    for axis in figure.axes:
        for ticks in (axis.xaxis, axis.yaxis):
            words = [label.get_text() for label in ticks.get_ticklabels()]
            assert len(words) >= 2
            assert len(set(words)) == len(words)
            assert not [word for word in words if re.search(r"[$^]|\de[+-]", word)], words


def test_names_at_the_ends_of_lines_do_not_overlap(results: Results) -> None:
    """Fault: ten lines end at one place, and their names overlap."""
    results["series"]["deliveries_by_fan_out"] = [
        {"label": f"number {number}", "backend": "", "x": [1, 10], "y": [1e6, 1e6 + number], "x_unit": "", "y_unit": ""}
        for number in range(10)
    ]
    figure = drawn(results, "deliveries-by-fan-out")
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 10
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("places", "apart"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([0.0, 100.0], [0.0, 100.0]),
        ([50.0, 50.0], [44.0, 56.0]),
        ([10.0, 20.0, 30.0], [8.0, 20.0, 32.0]),
        ([0.0, 11.0, 12.0, 100.0], [-4.333, 7.667, 19.667, 100.0]),
    ],
)
def test_places_are_moved_apart_as_little_as_possible(places: list[float], apart: list[float]) -> None:
    """Fault: names drift away from their lines, or change their order."""
    assert plots._apart(places, 12.0) == pytest.approx(apart, abs=0.001)


@pytest.mark.parametrize("theme", plots.THEMES, ids=lambda theme: theme.name)
def test_every_colour_can_be_read_on_its_page(theme: plots.Theme) -> None:
    """Fault: a name is grey on a grey page. The Web Content Accessibility Guidelines ask for a contrast of 4.5 for
    text, and of 3 for lines."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(colour: str) -> float:
        low, high = sorted((luminance(colour), luminance(theme.background)))
        return (high + 0.05) / (low + 0.05)

    for colour in (theme.text, theme.faint, *theme.own, *theme.other):
        assert contrast(colour) >= 4.5, f"{colour} on {theme.background}: {contrast(colour):.2f}"


def test_a_name_looks_the_same_in_every_picture() -> None:
    """Fault: a peer has different marks in two pictures, or two peers look alike."""
    style = plots.Style(("memory", "virtual"))
    names = ["memory", "asyncio", "virtual", "uvloop", "sched"]
    looks = [style.of(name, plots.THEMES[0]) for name in names]
    assert [style.of(name, plots.THEMES[0]) for name in reversed(names)] == looks[::-1]
    assert len({(look["color"], look["marker"], str(look.get("linestyle"))) for look in looks}) == len(names)


# Figures


def test_the_examples_of_figures_run() -> None:
    """Fault: a figure is shown as 7.1e+02 ns, or with more digits than are meaningful."""
    assert doctest.testmod(units).attempted >= 4
    assert doctest.testmod(units).failed == 0


@pytest.mark.parametrize("unit", sorted(units.UNITS))
def test_no_figure_is_shown_as_a_power(unit: str) -> None:
    """Fault: a figure outside the usual range is shown as 1e+09."""
    for exponent in range(-3, 16):
        for factor in (1.0, 1.2345, 9.996):
            text = units.shown(factor * 10.0**exponent, unit)
            assert re.fullmatch(r"[\d,.]+( \D+)?", text), text
            if 0 <= exponent < 9 and unit != "count" and not text.endswith(" s"):
                assert len(re.sub(r"\D", "", text).lstrip("0")) <= 3, text
