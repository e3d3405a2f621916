"""Figures as SVG for inlining: drawn with stand-in colours that become the page's variables, so both schemes fit.

No text of the data enters a figure: names of runs and rewards stand in the page beside it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

NUM_RUN_COLOURS = 6
_STAND_INS = {"ink": "#010203", "muted": "#040506", "line": "#070809"} | {
    f"run{index}": f"#0a0b{index:02x}" for index in range(NUM_RUN_COLOURS)
}
_DASHES = {"solid": "-", "dashed": (0, (4, 2.2)), "dotted": (0, (1, 1.8))}
_SMOOTH_FROM = 60  # points, from which a running mean is drawn over the raw curve
_SIZES = {"small": (4.2, 2.6), "large": (5.6, 3.7)}  # inches of 72 units: near 1:1 in the page and on a phone
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
    """One figure with its title and the sentence below it; `title` and `note` are the page's, not the SVG's."""

    title: str
    note: str
    curves: Sequence[Curve]
    levels: Sequence[Level] = field(default=())
    x_label: str = "iteration"
    percent: bool = False
    sqrt_x: bool = False  # x is a KL, drawn on a square-root scale
    diagonal: bool = False
    size: str = "small"

    @property
    def empty(self) -> bool:
        return not any(len(curve.xs) for curve in self.curves)


def run_colour(index: int) -> str:
    """The accent of the run with this number."""
    return f"run{index % NUM_RUN_COLOURS}"


def draw(panel: Panel, number: int) -> str:
    """The panel as an <svg> element whose ids are told apart from other figures' by `number`."""
    with mpl.rc_context(_style()):
        figure = Figure(figsize=_SIZES[panel.size], layout="constrained")
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
        content = io.StringIO()
        figure.savefig(
            content, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(content.getvalue(), panel, number)


def _style() -> dict[Any, Any]:
    muted, line = _STAND_INS["muted"], _STAND_INS["line"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "keel",
        "font.size": 9.5,
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
        "legend.fontsize": 8.5,
        "legend.labelcolor": muted,
        "legend.handlelength": 1.8,
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
        axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
        ys = running_mean(ys)
    axes.plot(
        xs,
        ys,
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


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.02, y=0.08)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if np.ptp(axes.get_ylim()) > 0.04 else 1))
    if panel.sqrt_x:
        ticks = _kl_ticks(axes.get_xlim()[1])
        axes.set_xticks([math.sqrt(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    elif panel.diagonal:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.x_label in ("iteration", "step")))
    handles, names = axes.get_legend_handles_labels()
    first = dict(zip(reversed(names), reversed(handles), strict=True))  # the lines of several runs share their names
    if len(first) > 1 or panel.levels:
        ordered = list(dict.fromkeys(names))
        legend = axes.legend([first[name] for name in ordered], ordered, loc="best")
        if len({curve.colour for curve in panel.curves}) > 1 and not panel.levels:
            for (
                handle
            ) in legend.legend_handles:  # it tells the kinds of lines apart; the page says whose colour is whose
                if handle is not None:
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
    """An element of the page instead of a file: no prologue, namespaces or fixed size; the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = (
        re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    )
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>f{number}-", svg).replace("xlink:href", "href")
    for name, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg", f'<svg class="{panel.size}" aria-hidden="true"', 1).strip()
