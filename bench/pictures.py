"""The pictures of a report: the series of the results from which each is drawn, and its texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import plots

__all__ = ["PICTURES", "Picture", "draw"]


@dataclass(frozen=True)
class Picture:
    """One picture, and its texts."""

    heading: str
    title: str
    better: str
    panels: Callable[[Mapping[str, Any]], Sequence[Any]]
    """Makes the panels from the series; returns none if they were not measured."""
    draw: Callable[..., Any]


def _costs(series: Mapping[str, Any]) -> list[plots.Panel]:
    """Return a panel for each operation; a label is `operation, name`."""
    entries: list[dict[str, Any]] = [
        entry for key, listed in series.items() if key.endswith("cost_by_size") for entry in listed
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(str(entry["label"]).partition(", ")[0], []).append(entry)
    return [
        plots.Panel(operation, listed[0]["x_unit"], [_curve(entry, name_only=True) for entry in listed], "us")
        for operation, listed in found.items()
    ]


def _fan_outs(series: Mapping[str, Any]) -> list[plots.Panel]:
    entries = series.get("deliveries_by_fan_out") or []
    return [plots.Panel("", "subscribers of the topic", [_curve(entry) for entry in entries], "1/s")] if entries else []


def _bytes(series: Mapping[str, Any]) -> list[plots.Panel]:
    entries = series.get("bytes_per_timer") or []
    return [plots.Panel("", "pending timers", [_curve(entry) for entry in entries], "B")] if entries else []


def _curve(entry: Mapping[str, Any], *, name_only: bool = False) -> plots.Curve:
    name = entry["label"].partition(", ")[2] if name_only else entry["label"]
    return plots.Curve(name, entry["x"], entry["y"])


def _lateness(series: Mapping[str, Any]) -> list[tuple[str, list[plots.Late]]]:
    loads = {"idle": "on an idle machine", "loaded": "beside a thread that computes"}
    found: dict[str, list[plots.Late]] = {}
    for entry in series.get("lateness") or []:
        heading = loads.get(entry["load"]) or str(entry["load"])
        found.setdefault(heading, []).append(plots.Late(entry["label"], entry["percentiles"]))
    return list(found.items())


PICTURES: Final = {
    "cost-by-size": Picture(
        "Cost, while more and more is pending",
        "What one operation costs while more and more timers are pending",
        "Less is better; a flat line: it costs the same however much is pending.",
        _costs,
        plots.curves,
    ),
    "deliveries-by-fan-out": Picture(
        "Deliveries, by fan-out",
        "Deliveries per second, by the number of subscribers",
        "More is better.",
        _fan_outs,
        plots.curves,
    ),
    "lateness": Picture("Lateness", "How late timers begin", "Less is better.", _lateness, plots.lateness),
    "bytes-per-timer": Picture(
        "Bytes of a timer",
        "Memory of one pending timer, the share of its conversation included",
        "Less is better.",
        _bytes,
        plots.curves,
    ),
}


def draw(series: Mapping[str, Any], own: Sequence[str], folder: Path) -> dict[str, list[Path]]:
    """Draw the pictures of all measured series, and remove the files of the others.

    Args:
        own: the backends of stube, which are drawn so that they are seen first.
        folder: the folder of the page; the pictures are written to its subfolder `plots`.

    Returns:
        The files of each picture, as the page refers to them, in the order of `plots.THEMES`.
    """
    style = plots.Style(own)
    drawn = {}
    for name, picture in PICTURES.items():
        panels = picture.panels(series)
        if panels:
            made = partial(picture.draw, panels, style, picture.title, picture.better)
            drawn[name] = [path.relative_to(folder) for path in plots.save(made, folder / "plots", name)]
        else:
            for theme in plots.THEMES:
                (folder / "plots" / f"{name}-{theme.name}.svg").unlink(missing_ok=True)
    return drawn
