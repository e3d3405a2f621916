"""Figures as SVG for inlining: drawn with stand-in colours that become the page's variables, so both schemes fit.

What is drawn holds no text of the data: names of runs and rewards stand in the page beside it. `<title>` says in words
what the figure shows, for those who cannot see it; it is escaped.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from keel.report import numbers

NUM_RUN_COLOURS = 6
_STAND_INS = {"ink": "#010203", "muted": "#040506", "line": "#070809", "good": "#0c0d0e"} | {
    f"run{index}": f"#0a0b{index:02x}" for index in range(NUM_RUN_COLOURS)
}
_DASHES = {"solid": "-", "dashed": (0, (4, 2.2)), "dotted": (0, (1, 1.8))}
_SMOOTH_FROM = 60  # points, from which a running mean is drawn over the raw curve
_MOST_POINTS = 240  # a curve is drawn with; a figure is some 300 units wide
_SIZE = (4.2, 2.6)  # inches of 72 units: near 1:1 in the page and on a phone
_KL_TICKS = (0, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 250, 500, 1000)


@dataclass(frozen=True)
class Curve:
    """A line (`style`), or points (`marker` alone, style ""); `label` goes to the figure's legend."""

    xs: Sequence[float]
    ys: Sequence[float]
    colour: str = "ink"
    style: str = "solid"
    marker: str = ""
    label: str = ""
    sizes: Sequence[float] | None = None  # of the markers' areas
    errors: Sequence[float] | None = None  # half-lengths of vertical bars
    smooth: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line that something is held against."""

    y: float
    label: str
    colour: str = "muted"


@dataclass(frozen=True)
class Panel:
    """One figure with its title and the sentence below it, which are the page's and not drawn.

    `healthy` is the range that is shaded, from one end of the axis where a bound is infinite. `minor` figures are
    folded away. `lines` are fixed words that stand at y = 0, 1, … in the place of numbers.
    """

    title: str
    note: str
    curves: Sequence[Curve]
    levels: Sequence[Level] = field(default=())
    x_label: str = "iteration"
    percent: bool = False
    sqrt_x: bool = False  # x is a KL, drawn on a square-root scale
    log_y: bool = False
    diagonal: bool = False
    healthy: tuple[float, float] | None = None
    minor: bool = False
    lines: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        return not any(len(curve.xs) for curve in self.curves)


def run_colour(index: int) -> str:
    """The accent of the run with this number."""
    return f"run{index % NUM_RUN_COLOURS}"


def draw(panel: Panel, number: int) -> str:
    """The panel as an <svg> element whose ids are told apart from other figures' by `number`."""
    with mpl.rc_context(_style()):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for curve in panel.curves:
            _add(axes, curve, panel.sqrt_x)
        for level in panel.levels:
            axes.axhline(
                level.y, color=_STAND_INS[level.colour], linewidth=1, linestyle=_DASHES["dotted"], label=level.label
            )
        if panel.diagonal:
            axes.axline((0.5, 0.5), slope=1, color=_STAND_INS["muted"], linewidth=1, linestyle=_DASHES["dotted"])
        _dress(axes, panel)
        _shade(axes, panel)
        _add_key(figure, axes, panel)
        content = io.StringIO()
        figure.savefig(
            content, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(content.getvalue(), panel, number)


def describe(panel: Panel) -> str:
    """What the figure shows, in a sentence: where every line starts and ends."""
    form = numbers.percent if panel.percent else numbers.number
    if panel.lines:
        said = [f"{panel.lines[int(curve.ys[0])]}: {form(curve.xs[0])}" for curve in panel.curves if len(curve.xs) == 1]
        return f"{panel.title}. {'; '.join(said)}."
    parts = []
    for curve in panel.curves:
        if not len(curve.xs):
            continue
        label = f"{curve.label}: " if curve.label else ""
        first, last = form(curve.ys[0]), form(curve.ys[-1])
        ends = f"{first} at {numbers.number(curve.xs[0], 0)} to {last} at {numbers.number(curve.xs[-1], 0)}"
        if panel.sqrt_x or panel.diagonal or curve.sizes is not None or len(curve.xs) == 1:
            ends = f"{len(curve.xs)} points up to {form(max(curve.ys))}" if len(curve.xs) > 1 else last
        parts.append(f"{label}{ends}")
    parts += [level.label for level in panel.levels]
    return f"{panel.title}. {'; '.join(parts)}."


def _style() -> dict[Any, Any]:
    muted, line = _STAND_INS["muted"], _STAND_INS["line"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "keel",
        "font.size": 10.5,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.unicode_minus": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.labelcolor": muted,
        "legend.handlelength": 1.8,
        "legend.borderpad": 0,
        "legend.borderaxespad": 0,
        "legend.columnspacing": 1.4,
        "legend.labelspacing": 0.3,
        "lines.linewidth": 1.7,
        "lines.markersize": 5,
    }


def _add(axes: Axes, curve: Curve, sqrt_x: bool) -> None:
    colour = _STAND_INS[curve.colour]
    xs = np.sqrt(np.maximum(curve.xs, 0.0)) if sqrt_x else np.asarray(curve.xs, dtype=float)
    ys = np.asarray(curve.ys, dtype=float)
    if curve.errors is not None:
        axes.errorbar(xs, ys, yerr=curve.errors, fmt="none", ecolor=colour, elinewidth=1, alpha=0.55)
    if curve.sizes is not None:
        axes.scatter(xs, ys, s=list(curve.sizes), color=colour, zorder=3, label=curve.label or None)
        return
    if curve.smooth and len(xs) >= _SMOOTH_FROM:
        axes.plot(*thinned(xs, ys), color=colour, linewidth=0.8, alpha=0.3)
        ys = running_mean(ys)
    axes.plot(
        *thinned(xs, ys),
        color=colour,
        linestyle=_DASHES[curve.style] if curve.style else "none",
        marker=curve.marker or ("o" if len(xs) == 1 else ""),
        label=curve.label or None,
    )


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a twentieth of the points, cut at the ends; [N] → [N]."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[end] - sums[start]) / (end - start))


def thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve by the lowest and the highest point of each of equal stretches, its ends kept; what looks the same.

    [N], [N] → two of at most 240 + 2.
    """
    if len(xs) <= _MOST_POINTS:
        return xs, ys
    kept = {0, len(xs) - 1}
    for stretch in np.array_split(np.arange(len(xs)), _MOST_POINTS // 2):
        kept |= {int(stretch[np.argmin(ys[stretch])]), int(stretch[np.argmax(ys[stretch])])}
    at = sorted(kept)
    return xs[at], ys[at]


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label)
    if panel.lines:
        axes.set_yticks(range(len(panel.lines)), panel.lines, fontsize=8.5)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.02, y=0.08)
    if panel.percent:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if np.ptp(axes.get_ylim()) > 0.04 else 1))
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.sqrt_x:
        ticks = _kl_ticks(axes.get_xlim()[1])
        axes.set_xticks([math.sqrt(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    elif panel.diagonal:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.x_label in ("iteration", "step")))


def _shade(axes: Axes, panel: Panel) -> None:
    """The healthy range behind the curves, as far as the axis shows it: the axis is the curves' own."""
    if panel.healthy is None:
        return
    low, high = axes.get_ylim()
    start, end = max(low, panel.healthy[0]), min(high, panel.healthy[1])
    if start < end:
        axes.axhspan(start, end, color=_STAND_INS["good"], alpha=0.1, linewidth=0, zorder=0, label="healthy")
    axes.set_ylim(low, high)


def _add_key(figure: Figure, axes: Axes, panel: Panel) -> None:
    """What is what, above the figure, where it hides nothing. The lines of several runs share their names."""
    handles, names = axes.get_legend_handles_labels()
    first = dict(zip(reversed(names), reversed(handles), strict=True))
    if len(first) < 2 and not panel.levels and panel.healthy is None:
        return
    ordered = list(dict.fromkeys(names))
    longest = max(map(len, ordered), default=0)
    legend = figure.legend(
        [first[name] for name in ordered], ordered, loc="outside upper left", ncols=3 if longest < 16 else 2
    )
    if len({curve.colour for curve in panel.curves}) > 1:
        for name, handle in zip(ordered, legend.legend_handles, strict=True):
            # It tells the kinds of lines apart; the page says whose colour is whose.
            if handle is not None and name in {curve.label for curve in panel.curves}:
                handle.set(color=_STAND_INS["muted"])


def _kl_ticks(right: float) -> list[float]:
    """Round KLs up to right², far enough from each other on the square-root scale."""
    kept: list[float] = []
    for tick in _KL_TICKS:
        root = math.sqrt(tick)
        if root <= right and (not kept or root - math.sqrt(kept[-1]) > 0.07 * right):
            kept.append(tick)
    return kept


def _inline(svg: str, panel: Panel, number: int) -> str:
    """An element of the page instead of a file: small, named, without prologue or namespaces; the page's colours."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|font-family:[^;]*; ", "", svg[svg.index("<svg") :], flags=re.S
    )
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", opening)
    root = ElementTree.fromstring(f"{opening}>{rest}".replace("xlink:href", "href"))
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    _tidy(root, referred)
    root.set("role", "img")
    svg = ElementTree.tostring(root, encoding="unicode")
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>f{number}-", svg)
    for name, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    title = ElementTree.Element("title")
    title.text = describe(panel)
    at = svg.index(">") + 1
    return svg[:at] + ElementTree.tostring(title, encoding="unicode") + svg[at:]


def _tidy(element: ElementTree.Element, referred: set[str]) -> None:
    """Leave out what a page has no use for: unused ids, groups that group nothing, digits nobody sees."""
    if element.get("id") not in referred:
        element.attrib.pop("id", None)
    for name in ("d", "x", "y", "width", "height"):
        if name in element.attrib:
            short = re.sub(
                r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), element.attrib[name]
            )
            element.attrib[name] = " ".join(short.split())
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    element.tail = None
    if element.tag != "text":
        element.text = None
    kept: list[ElementTree.Element] = []
    for child in element:
        _tidy(child, referred)
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = [child for child in kept if child.tag != "defs" or len(child)]
