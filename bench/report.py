"""Write the page of the results: `python bench/report.py RESULTS_JSON [--into FOLDER]`.

Writes RESULTS.md and its pictures (plots/*.svg, for light and for dark pages) from the results of `bench/run.py`, and
from those of `make load` if their file load.json is in the same folder.
Whether a target is met is decided here again from its figure and its limits; results that contradict this are refused.
The reasons for missed targets are written by hand in bench/analysis.md, which becomes a section of the page. A missed
target that is not mentioned there, in the words of its row, is named on the page and on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from bench import pictures
from bench.load import figures
from bench.results import PARTS, ResultsError, read
from bench.units import UNITS, counted, ratio, shown

__all__ = ["Page", "Target", "main", "write"]

ANALYSIS: Final = Path(__file__).with_name("analysis.md")
_OWN: Final = ("memory", "virtual", "sharded")  # in this order; other judged backends follow
_SENSES: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
}
_SIGNS: Final = {">=": "≥", "<=": "≤"}


@dataclass(frozen=True)
class Target:
    """One row of the targets or of the comparisons."""

    work: str
    backend: str
    figure: float
    unit: str
    peer: str | None
    peer_figure: float | None
    ratio: float | None
    spread: Sequence[float] | None
    judged: str
    sense: str
    must: float | None
    aim: float | None
    met: bool | None
    aim_met: bool | None
    detail: str

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Target:
        """Read a row of the results.

        Raises:
            ValueError: a field is missing, or contradicts the other fields.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(f"The row {row.get('work', '')!r} has no {missing[0]!r}. Measure again.")
        target = cls(**{name: row[name] for name in names})
        if target.unit not in UNITS:
            raise ValueError(
                f"The row {target.work!r} has the unit {target.unit!r}. Use one of {', '.join(sorted(UNITS))}."
            )
        for name, limit in (("met", target.must), ("aim_met", target.aim)):
            decided = target.reaches(limit)
            if getattr(target, name) != decided:
                raise ValueError(
                    f"The row {target.work!r} says {name}={getattr(target, name)}, and {target.judged} {target.value} "
                    f"against {target.sense} {limit} is {decided}. Measure again, or fix the code that judges rows."
                )
        return target

    @property
    def value(self) -> float | None:
        """The value that is judged."""
        return self.ratio if self.judged == "ratio" else self.figure

    def reaches(self, limit: float | None) -> bool | None:
        """Return True if the value reaches a limit; None if there is no limit or no value."""
        return None if limit is None or self.value is None else _SENSES[self.sense](self.value, limit)

    @property
    def limits(self) -> list[float]:
        """The limits with which the value is compared."""
        return [limit for limit in (self.must, self.aim) if limit is not None]

    @property
    def missed(self) -> bool:
        """True if the target must be reached and is not, or was not measured."""
        return self.must is not None and not self.met

    @property
    def result(self) -> str:
        """The result in words."""
        if self.must is not None and self.met is None:
            return "**not measured**"
        if self.must is not None and not self.met:
            return "**missed**"
        met = ["met"] if self.must is not None else []
        aim = [] if self.aim is None else ["aim reached" if self.aim_met else "aim not reached"]
        return ", ".join([*met, *aim])


# The page


@dataclass
class Page:
    """The text of a report, and the missed targets that the analysis does not mention."""

    results: Mapping[str, Any]
    analysis: str
    plots: Mapping[str, Sequence[Path]]
    """The files of each picture, by its name, in the order of the themes, as the page refers to them."""
    load: Mapping[str, Any] | None = None
    """The figures that were measured under load, if any."""

    def __post_init__(self) -> None:
        self.targets = [Target.read(row) for row in self.results["targets"]]
        self.comparisons = [Target.read(row) for row in self.results["comparisons"]]
        other = self.results["free_threaded"]
        self.free_threaded = [] if other is None else [Target.read(row) for row in other["targets"]]
        self.unexplained = [
            work
            for work in dict.fromkeys(target.work for target in self._all if target.missed)
            if _plain(work) not in _plain(self.analysis)
        ]
        """The missed targets that the analysis does not mention."""

    @property
    def _all(self) -> list[Target]:
        return [*self.targets, *self.free_threaded]

    def text(self) -> str:
        """Return the page, in Markdown."""
        parts = [
            "<!-- Written by bench/report.py; the section Analysis by hand, in bench/analysis.md. -->",
            "# What stube reaches",
            *self._head(),
            "## Targets",
            "Each figure is beside that of the library which a user would choose instead, measured in the same run. A "
            "ratio is stube's figure divided by the other one: the median of the rounds, with the least and the "
            "greatest of them below.",
            *_target_table(self.targets),
            "## Analysis",
            *self._analysis(),
            "## Beside others",
            *_comparison_tables(self.comparisons),
            *self._pictures(),
            *self._load(),
            "## Memory",
            *_matrix(self.results["memory"], "what", "backend", lambda row: shown(row["bytes"], "B")),
            "## Start-up",
            *_table(
                ["what", "time"], "lr", ([row["what"], shown(row["ms"], "ms")] for row in self.results["start_up"])
            ),
            "## While idle",
            *self._wakeups(),
            "## Every operation",
            "The median of the rounds, and the width of their middle half in percent of the median.",
            *_operation_tables(self.results["operations"]),
            "## Without the GIL",
            *self._free_threaded(),
        ]
        return "\n\n".join(parts) + "\n"

    # -- sections ----------------------------------------------------------------------------------------------

    def _head(self) -> Iterator[str]:
        yield _summary(self.targets)
        if self.results["mode"] != "full":
            yield (
                f"**This is a {self.results['mode']} run: small sizes and few rounds, to test that everything can be "
                "measured. Its figures are only hints.**"
            )
        yield _machine(
            self.results["machine"], self.results["made"], self.results["rounds"], self.results.get("runs", 1)
        )

    def _analysis(self) -> Iterator[str]:
        text = _without_title(self.analysis)
        missed = any(target.missed for target in self._all)
        if text:
            yield text
        if self.unexplained:
            yield "**Not yet analysed:** " + "; ".join(self.unexplained) + "."
        elif not missed and not text:
            yield "No target is missed."

    def _pictures(self) -> Iterator[str]:
        for name, picture in pictures.PICTURES.items():
            yield f"## {picture.heading}"
            files = self.plots.get(name)
            if files:
                light, dark = files
                yield (
                    "<picture>\n"
                    f'  <source media="(prefers-color-scheme: dark)" srcset="{dark.as_posix()}">\n'
                    f'  <img alt="{picture.title}. {picture.better}" src="{light.as_posix()}">\n'
                    "</picture>"
                )
            else:
                yield "Not measured in this run."

    def _load(self) -> Iterator[str]:
        load = self.load
        if load is None:
            return
        yield "## Load"
        yield (
            f"{load['streams']:,} streams on one process at the same time, for {load['seconds']:g} s. Each is a "
            "conversation with a clock that ticks every second, and receives the messages of one common room "
            f"({load['messages_per_second']:g} a second). The server is uvicorn with one worker, on the event loop of "
            f"{load['loop']}; the pages are in another process on the same machine. `stube.asgi` is compared with the "
            "same host as people write it by hand: a dict of `asyncio.Queue`s, a task for each clock, sse-starlette. "
            "On both hosts a clock re-arms after each tick, so its lateness adds up, and some ticks are not made."
        )
        yield _machine(load["machine"], load["made"])
        names = figures.names(load)
        yield from _table(["", *names], "l" + "r" * len(names), figures.rows(load))
        yield (
            "Memory is the growth of the process since before its first stream, so it includes the connections and "
            "their tasks. The host with stube also keeps the last 256 events of each conversation, for a page that was "
            f"cut and comes back, and waits {figures.GRACE_SECONDS:g} s for the page before it ends the conversation."
        )
        for name, host in zip(names, load["hosts"], strict=True):
            if host["ledger"]:
                yield f"The ledger of {name}: {host['ledger']}."

    def _wakeups(self) -> Iterator[str]:
        yield (
            "A registry waits for a timer that is due in an hour. A look is a reading of its clock; a switch is a "
            "voluntary context switch of one of its threads."
        )
        yield from _table(
            ["backend", "watched", "looks", "switches"],
            "lrrr",
            (
                [row["backend"], shown(row["seconds"], "s"), counted(row["looks"]), _count(row["switches"])]
                for row in self.results["wakeups"]
            ),
        )

    def _free_threaded(self) -> Iterator[str]:
        other = self.results["free_threaded"]
        if other is None:
            yield "Not measured in this run."
            return
        yield _summary(self.free_threaded)
        yield _machine(other["machine"])
        yield from _target_table(self.free_threaded)


def _summary(targets: Sequence[Target]) -> str:
    musts = [target for target in targets if target.must is not None]
    aims = [target for target in targets if target.aim is not None]
    met, reached = sum(not target.missed for target in musts), sum(bool(target.aim_met) for target in aims)
    line = f"**{met} of {len(musts)} musts met, {reached} of {len(aims)} aims.**"
    missed = list(dict.fromkeys(f"{target.work} (`{target.backend}`)" for target in musts if target.missed))
    return line if not missed else f"{line} Missed: {'; '.join(missed)}."


def _machine(machine: Mapping[str, Any], made: str = "", rounds: int | None = None, runs: int = 1) -> str:
    lock = "with the GIL" if machine["gil"] else "without the GIL"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        f"{machine['python']}, {lock}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    if made:
        lines.append(f"measured on {made}" + ("" if rounds is None else f", in {rounds} rounds"))
    if runs > 1:
        lines.append(f"the targets in {runs} runs of these rounds, of which the tables show the worse one")
    return "\n".join(f"- {line}" for line in lines)


def _without_title(text: str) -> str:
    lines = text.strip().splitlines()
    return "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines).strip()


def _plain(text: str) -> str:
    """Return the text without marks, capitals and line breaks, for comparisons."""
    return " ".join(text.replace("`", "").replace("*", "").split()).casefold()


def _count(number: int | None) -> str:
    return "-" if number is None else counted(number)


# Tables


def _table(heads: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown, or a sentence if it has no rows. `sides` has an `l` or an `r` for each column."""
    filled = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    if not filled:
        return ["Not measured in this run."]
    rule = [":--" if side == "l" else "--:" for side in sides]
    return ["\n".join(f"| {' | '.join(row)} |" for row in [list(heads), rule, *filled])]


def _target_table(targets: Sequence[Target]) -> list[str]:
    heads = ["work", "backend", "figure", "beside", "ratio", "must", "aim", "result"]
    return _table(heads, "llrrrrrl", map(_target_cells, targets))


def _target_cells(target: Target) -> list[str]:
    work = f"{target.work}<br><sub>{target.detail}</sub>" if target.detail else target.work
    by_figure = target.judged == "figure"
    cells = [
        f"`{target.backend}`",
        _unbroken(shown(target.figure, target.unit, limits=target.limits if by_figure else ())),
        f"{target.peer}: {_unbroken(shown(target.peer_figure, target.unit))}" if target.peer else "",
        _ratio(target),
        *(_limit(target, limit) for limit in (target.must, target.aim)),
    ]
    bold = [f"**{cell}**" if target.missed and cell else cell for cell in cells]
    return [f"**{target.work}**{work[len(target.work) :]}" if target.missed else work, *bold, target.result]


def _ratio(target: Target) -> str:
    if target.ratio is None:
        return ""
    spread = "" if target.spread is None else f"<br><sub>{_unbroken(' to '.join(map(ratio, target.spread)))}</sub>"
    return ratio(target.ratio, target.limits if target.judged == "ratio" else ()) + spread


def _limit(target: Target, limit: float | None) -> str:
    if limit is None:
        return ""
    return _unbroken(
        f"{_SIGNS[target.sense]} {f'{limit:g}' if target.judged == 'ratio' else shown(limit, target.unit)}"
    )


def _unbroken(text: str) -> str:
    """Return the text with spaces that do not break, for narrow columns."""
    return text.replace(" ", "\u00a0")


def _comparison_tables(comparisons: Sequence[Target]) -> Iterator[str]:
    if not comparisons:
        yield "Not measured in this run."
    by_work: dict[tuple[str, str], list[Target]] = {}
    for row in comparisons:
        by_work.setdefault((row.work, row.backend), []).append(row)
    for (work, backend), rows in by_work.items():
        own = shown(rows[0].figure, rows[0].unit)
        better = "more" if rows[0].sense == ">=" else "less"
        yield f"**{work}**: `{backend}` {own}; {better} is better."
        cells = [[row.peer or "", _unbroken(shown(row.peer_figure, row.unit)), _ratio(row), row.detail] for row in rows]
        wide = 4 if any(row.detail for row in rows) else 3
        yield from _table(["beside", "its figure", "ratio", ""][:wide], "lrrl"[:wide], (row[:wide] for row in cells))


def _matrix(
    rows: Sequence[Mapping[str, Any]], row_key: str, column_key: str, cell: Callable[[Mapping[str, Any]], str]
) -> list[str]:
    """Return a table with a row and a column for each value of the two keys; a cell without a figure is empty."""
    columns = _in_order({row[column_key] for row in rows})
    cells = {(row[row_key], row[column_key]): cell(row) for row in rows}
    return _table(
        [row_key, *(f"`{column}`" if column in _OWN else column for column in columns)],
        "l" + "r" * len(columns),
        (
            [name, *(cells.get((name, column), "") for column in columns)]
            for name in dict.fromkeys(row[row_key] for row in rows)
        ),
    )


def _in_order(backends: Iterable[str]) -> list[str]:
    """Return stube's backends first, in their usual order, then others by name."""
    return sorted(backends, key=lambda name: (_OWN.index(name) if name in _OWN else len(_OWN), name))


def _operation_tables(operations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not operations:
        yield "Not measured in this run."
    named = [{**row, "operation": _with_size(row["name"], row["size"])} for row in operations]
    for group in dict.fromkeys(row["group"] for row in named):
        yield f"### {group}"
        yield from _matrix([row for row in named if row["group"] == group], "operation", "backend", _median)


def _with_size(name: str, size: int | None) -> str:
    return name if size is None or f"{size:,}" in name else f"{name}, {size:,}"


def _median(row: Mapping[str, Any]) -> str:
    apart = row["iqr_us"] / row["median_us"] if row["median_us"] else 0.0
    return f"{shown(row['median_us'], 'us', 2 if apart >= 0.02 else 3)} ({apart:.0%})"


# The whole report


def write(results: Mapping[str, Any], folder: Path, analysis: str, load: Mapping[str, Any] | None = None) -> list[str]:
    """Write RESULTS.md and its pictures into a folder; return the warnings.

    Args:
        load: the figures that were measured under load, if any.

    Raises:
        ValueError: the results contradict themselves.
    """
    warnings = [f"The results have no {name!r}." for name in PARTS if results.get(name, ()) in ((), [], {})]
    complete = {**PARTS, **results}
    own = _in_order({*_OWN, *(row["backend"] for row in complete["targets"])})
    page = Page(complete, analysis, pictures.draw(complete["series"], own, folder), load)
    missing = [name for name in pictures.PICTURES if name not in page.plots]
    warnings += [f"There is no picture {name!r}, because its series was not measured." for name in missing]
    warnings += [f"A target is missed and bench/analysis.md does not mention it: {work}." for work in page.unexplained]
    warnings += [] if load is None else figures.wrong(load)
    (folder / "RESULTS.md").write_text(page.text(), encoding="utf-8")
    return warnings


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; return 0, or 1 if the results cannot be used."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the results, as JSON")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where to write (default: the results' folder)")
    parser.add_argument(
        "--analysis", type=Path, default=ANALYSIS, help="the section written by hand (bench/analysis.md)"
    )
    arguments = parser.parse_args(argv)
    folder = arguments.into or arguments.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    analysis = arguments.analysis.read_text(encoding="utf-8") if arguments.analysis.is_file() else ""
    beside = arguments.results.with_name("load.json")
    try:
        load = figures.read(beside) if beside.exists() else None
        warnings = write(read(arguments.results), folder, analysis, load)
    except (OSError, ValueError, ResultsError) as exc:
        print(f"report.py: {exc}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(warning, file=sys.stderr)
    print(f"Written: {folder / 'RESULTS.md'}, and its pictures in {folder / 'plots'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
