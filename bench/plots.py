"""The pictures of a report, each as SVG for light and for dark pages.

stube's backends are coloured and drawn thick, with the same colour in every picture. Peers are grey and differ by mark
and dash. Every line has its name at its end, so that a reader does not need the colours. Letters are drawn as outlines,
because otherwise a page on a code host would show them in the reader's own font. The same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.units import short, shown

__all__ = ["THEMES", "Curve", "Late", "Panel", "Style", "curves", "lateness", "save"]

_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "stube",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],  # matplotlib installs it, so that a picture looks the same on every machine
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}
_LOG_FROM: Final = 20  # from this ratio of the largest figure to the smallest a logarithmic scale is easier to read
_WIDE_FROM: Final = 1000  # from this ratio its ticks are powers of ten only
_WIDTH: Final = 8.8  # inches, the width of a page on a code host
_HEAD: Final = 0.62  # inches, the height of the two lines above the panels
_LINE_HEIGHT: Final = 12.0  # points between two names at the ends of lines
_LEADER: Final = {"arrowstyle": "-", "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4}
_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES: Final = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1.5)))


@dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    name: str
    background: str
    text: str
    faint: str
    grid: str
    own: tuple[str, ...]
    """The colours of Okabe and Ito, which colour-blind people can tell apart, with enough contrast for text."""
    other: tuple[str, ...]


THEMES: Final = (
    Theme(
        "light", "#ffffff", "#1f2328", "#59636e", "#dfe3e8",
        ("#0072b2", "#c05200", "#00805c", "#a94d8f"), ("#57606a", "#6e7781", "#434b54"),
    ),
    Theme(
        "dark", "#0d1117", "#f0f6fc", "#9aa4af", "#2b323a",
        ("#56b4e9", "#ff8c3b", "#2fc99a", "#e08fc4"), ("#b1bac4", "#8b949e", "#d0d7de"),
    ),
)  # fmt: skip


@dataclass
class Style:
    """The look of each line, the same in all pictures of a report."""

    own: Sequence[str]
    """The backends of stube."""
    _others: list[str] = field(default_factory=list)

    def of(self, name: str, theme: Theme) -> dict[str, Any]:
        """Return the arguments for plotting a line of this name."""
        if name in self.own:
            number = self.own.index(name)
            colour = theme.own[number % len(theme.own)]
            mark = _MARKS[number % len(_MARKS)]
            above = 4 - 0.1 * number  # the first backend is the most important one
            return {"color": colour, "marker": mark, "linewidth": 2.1, "markersize": 5, "zorder": above}
        if name not in self._others:
            self._others.append(name)
        number = self._others.index(name)
        return {
            "color": theme.other[number % len(theme.other)],
            "marker": _MARKS[(number + 1) % len(_MARKS)],
            "linestyle": _DASHES[number % len(_DASHES)],
            "linewidth": 1.3,
            "markersize": 4,
            "zorder": 2,
        }


@dataclass(frozen=True)
class Curve:
    """One line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Several lines in one coordinate system."""

    title: str
    x_label: str
    curves: Sequence[Curve]
    unit: str
    """The unit of the figures."""


@dataclass(frozen=True)
class Late:
    """The lateness of the timers of one backend or peer, by percentile, in microseconds."""

    name: str
    percentiles: Mapping[str, float]


def save(draw: Callable[[Theme], Figure], folder: Path, name: str) -> list[Path]:
    """Draw a picture for light and for dark pages; return the files, in the order of `THEMES`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme in THEMES:
        path = folder / f"{name}-{theme.name}.svg"
        with mpl.rc_context(_SETTINGS):
            figure = draw(theme)
            FigureCanvasSVG(figure)
            figure.savefig(path, format="svg", metadata=_NO_METADATA, facecolor=theme.background)
        paths.append(path)
    return paths


def curves(panels: Sequence[Panel], style: Style, title: str, better: str, theme: Theme) -> Figure:
    """Draw figures over a size, one panel beside the other."""
    figure, axes = _figure(title, better, len(panels), theme, height=4.1 if len(panels) == 1 else 3.9)
    for axis, panel in zip(axes, panels, strict=True):
        _curves(axis, panel, style, theme)
    figure.draw_without_rendering()  # computes the heights of the panels
    for axis, panel in zip(axes, panels, strict=True):
        _name_the_ends(axis, panel, style, theme)
    return figure


def lateness(
    panels: Sequence[tuple[str, Sequence[Late]]], style: Style, title: str, better: str, theme: Theme
) -> Figure:
    """Draw percentiles, one row for each backend or peer, one panel beside the other."""
    rows = max(len(lates) for _, lates in panels)
    figure, axes = _figure(title, better, len(panels), theme, height=1.9 + 0.34 * rows)
    for number, (axis, (heading, lates)) in enumerate(zip(axes, panels, strict=True)):
        _percentiles(axis, heading, lates, style, theme, legend=number == 0)
    return figure


# The frame


def _figure(title: str, better: str, panels: int, theme: Theme, height: float) -> tuple[Figure, list[Axes]]:
    room = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, rect=(0.005, 0, 0.99, 1 - _HEAD / height))
    figure = Figure(figsize=(_WIDTH, height), facecolor=theme.background, layout=room)
    for y, text, size, colour, weight in (
        (0.14, title, 12.5, theme.text, "bold"),
        (0.42, better, 10, theme.faint, "normal"),
    ):
        figure.text(0.014, 1 - y / height, text, size=size, color=colour, weight=weight, va="top")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.set_facecolor(theme.background)
        axis.tick_params(colors=theme.faint, labelcolor=theme.text, length=3, which="both")
        for spine in axis.spines.values():
            spine.set_color(theme.faint)
        axis.grid(visible=True, color=theme.grid, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _plain(ticks: Axis, label: Callable[[float], str], *, at: Sequence[float] = ()) -> None:
    """Label the ticks with plain numbers instead of powers."""
    ticks.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    ticks.set_minor_formatter(NullFormatter())
    if at:
        ticks.set_major_locator(FixedLocator(list(at)))
        ticks.set_minor_locator(NullLocator())


def _scale(figures: Iterable[float], unit: str, axis: Axes, direction: Literal["x", "y"]) -> None:
    """Use a logarithmic scale if the figures are far apart, else one from 0; with plain ticks."""
    found = [figure for figure in figures if figure > 0]
    low, high = min(found, default=1.0), max(found, default=1.0)
    ticks = axis.yaxis if direction == "y" else axis.xaxis
    apart = high / low >= _LOG_FROM
    if apart:
        (axis.set_yscale if direction == "y" else axis.set_xscale)("log")
    limits = (low / 1.6, high * 1.6) if apart else (0.0, high * 1.12)
    (axis.set_ylim if direction == "y" else axis.set_xlim)(*limits)
    if apart:
        ticks.set_major_locator(LogLocator(subs=(1.0,) if high / low >= _WIDE_FROM else (1.0, 3.0)))
        ticks.set_minor_locator(NullLocator())
        _plain(ticks, lambda figure: shown(figure, unit))
    else:
        ticks.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _plain(ticks, lambda figure: "0" if figure == 0 else shown(figure, unit, like=high))


# Curves


def _curves(axis: Axes, panel: Panel, style: Style, theme: Theme) -> None:
    for curve in panel.curves:
        axis.plot(curve.x, curve.y, clip_on=False, **style.of(curve.name, theme))
    sizes = sorted({size for curve in panel.curves for size in curve.x})
    axis.set_xscale("log")
    axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
    _plain(axis.xaxis, short, at=sizes)
    _scale((figure for curve in panel.curves for figure in curve.y), panel.unit, axis, "y")
    axis.set_xlabel(panel.x_label, color=theme.text)
    axis.set_title(panel.title, loc="left", size=10.5, color=theme.text)


def _name_the_ends(axis: Axes, panel: Panel, style: Style, theme: Theme) -> None:
    """Write the name of each line beside its end; move names apart that would overlap."""
    box = axis.get_window_extent()
    height = box.height / axis.figure.dpi * 72  # points
    to_axis = axis.transScale + axis.transLimits
    ends = sorted((float(to_axis.transform((1.0, curve.y[-1]))[1]), curve) for curve in panel.curves if curve.y)
    sizes = sorted(size for curve in panel.curves for size in curve.x)
    places = _apart([at * height for at, _ in ends], _LINE_HEIGHT)
    for place, (at, curve) in zip(places, ends, strict=True):
        look = style.of(curve.name, theme)
        strays = abs(place - at * height) > _LINE_HEIGHT / 2 or curve.x[-1] < sizes[-1]
        axis.annotate(
            curve.name,
            (curve.x[-1], curve.y[-1]),
            xytext=(1.04, place / height),
            textcoords="axes fraction",
            va="center",
            size=9,
            color=look["color"],
            weight="bold" if curve.name in style.own else "normal",
            annotation_clip=False,
            arrowprops=dict(_LEADER, color=theme.faint) if strays else None,
        )


def _apart(places: Sequence[float], distance: float) -> list[float]:
    """Return the places, in ascending order, moved as little as possible so that neighbours are `distance` apart.

    Neighbours that are too close form a block, which is centred on the mean of its places; blocks that meet are merged.
    """
    blocks: list[tuple[float, int]] = []  # the mean, and the number of places
    for place in places:
        middle, count = place, 1
        while blocks and middle - (count - 1) / 2 * distance < blocks[-1][0] + (blocks[-1][1] + 1) / 2 * distance:
            before, many = blocks.pop()
            middle, count = (before * many + middle * count) / (many + count), many + count
        blocks.append((middle, count))
    return [middle + (number - (count - 1) / 2) * distance for middle, count in blocks for number in range(count)]


# Percentiles

_PERCENTILE_MARKS: Final = {
    "50": ("o", "half of the timers were at most this late"), "90": ("D", "90 %"), "99": ("s", "99 %"),
    "100": ("|", "all"),
}  # fmt: skip


def _percentiles(axis: Axes, heading: str, lates: Sequence[Late], style: Style, theme: Theme, *, legend: bool) -> None:
    _scale((figure for late in lates for figure in late.percentiles.values()), "us", axis, "x")
    edge = axis.get_xlim()[0]
    for row, late in enumerate(lates):
        look = style.of(late.name, theme)
        at = {share: max(figure, edge) for share, figure in late.percentiles.items()}
        axis.plot([min(at.values()), max(at.values())], [row, row], color=look["color"], linewidth=look["linewidth"])
        for share, figure in at.items():
            mark, _ = _PERCENTILE_MARKS.get(share, (".", ""))
            axis.plot([figure], [row], clip_on=False, **_mark(mark, look["color"], theme))
        if any(figure < 0 for figure in late.percentiles.values()):  # a logarithmic scale cannot show early timers
            axis.annotate(
                "early",
                (edge, row),
                xytext=(2, 8),
                textcoords="offset points",
                size=8.5,
                style="italic",
                color=look["color"],
            )
    axis.set_ylim(len(lates) - 0.5, -0.6)
    axis.set_yticks(range(len(lates)), [late.name for late in lates])
    for label, late in zip(axis.get_yticklabels(), lates, strict=True):
        own = late.name in style.own
        label.set(color=style.of(late.name, theme)["color"], weight="bold" if own else "normal")
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0, pad=8)
    axis.set_title(heading, loc="left", size=10.5, color=theme.text)
    if legend:
        _explain(axis, lates, theme)


def _mark(mark: str, colour: str, theme: Theme) -> dict[str, Any]:
    """Return the arguments for plotting a percentile."""
    return {
        "marker": mark,
        "color": colour,
        "markerfacecolor": theme.background if mark == "D" else colour,
        "markersize": 9 if mark == "|" else 6,
        "markeredgewidth": 1.6,
        "linestyle": "none",
        "zorder": 3,
    }


def _explain(axis: Axes, lates: Sequence[Late], theme: Theme) -> None:
    """Draw the legend of the marks below the panels."""
    known = [share for share in _PERCENTILE_MARKS if any(share in late.percentiles for late in lates)]
    handles = [Line2D([], [], **_mark(_PERCENTILE_MARKS[share][0], theme.faint, theme)) for share in known]
    names = [_PERCENTILE_MARKS[share][1] for share in known]
    figure = axis.get_figure()
    assert figure is not None
    figure.legend(
        handles, names, loc="outside lower left", ncols=len(known), frameon=False, labelcolor=theme.text, fontsize=9.5,
        handletextpad=0.2, columnspacing=1.6,
    )  # fmt: skip
