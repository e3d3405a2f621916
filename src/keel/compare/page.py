"""The table of a comparison in words, as Markdown, and as a page with its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keel.compare.findings import Row
from keel.report.figures import NUM_RUN_COLOURS, Curve, Panel, run_colour
from keel.report.page import drawing, environment
from keel.runs import files

HEADER = ("algorithm", "true reward", "win rate", "score", "KL", "at equal KL", "tokens drawn", "CPU s", "GiB")


def equal_kl(rows: Sequence[Row]) -> float:
    """The KL at which all are compared: the highest that each of them gets to in every course."""
    return min((row.reach for row in rows), default=0.0)


def cells(row: Row, kl: float) -> tuple[str, ...]:
    """One row of the table, in the order of HEADER."""

    def shown(key: str, digits: int, scale: float = 1.0) -> str:
        mean, spread = row.quantities[key]
        if math.isnan(mean):
            return "–"
        return f"{scale * mean:.{digits}f}" + (f" ± {scale * spread:.{digits}f}" if row.seeds > 1 else "")

    tokens = row.quantities["sampled_tokens"][0]
    at = row.at(kl)
    return (
        row.algorithm,
        shown("truth", 2),
        shown("win_rate", 0, 100) + " %",
        shown("score", 2),
        shown("kl", 2),
        "–" if math.isnan(at) else f"{at:.2f}",
        f"{tokens / 1000:.0f} k" if tokens else "–",
        shown("cpu_seconds", 0),
        f"{row.quantities['peak_gib'][0]:.2f}",
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page of documentation."""
    kl = equal_kl(rows)
    header = [f"{name} ({kl:.2f} nats)" if name == "at equal KL" else name for name in HEADER]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row, kl)) + " |" for row in rows)]) + "\n"


def write(rows: Sequence[Row], out: Path, *, about: dict[str, Any]) -> Path:
    """compare.json, compare.md and report.html in `out`; returns the page."""
    files.write_json(out / "compare.json", {**about, "rows": [asdict(row) for row in rows]})
    files.write_bytes(out / "compare.md", markdown(rows).encode())
    pages, kl = environment(), equal_kl(rows)
    page = pages.get_template("compare.html.j2").render(
        css=Markup(pages.get_template("report.css").render()),
        header=HEADER,
        kl=kl,
        rows=[cells(row, kl) for row in rows],
        figures=list(zip(_keys(rows), drawing()(panels(rows)), strict=True)),
        colours=NUM_RUN_COLOURS,
        about=about,
    )
    files.write_bytes(out / "report.html", page.encode())
    return out / "report.html"


def _keys(rows: Sequence[Row]) -> list[list[str]]:
    """The algorithms of each figure, in the order of their colours."""
    names = [row.algorithm for row in rows]
    return [names[start : start + NUM_RUN_COLOURS] for start in range(0, len(names), NUM_RUN_COLOURS)]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """True reward against KL: a figure of at most as many algorithms as there are colours."""
    found = []
    for start in range(0, len(rows), NUM_RUN_COLOURS):
        curves = []
        for index, row in enumerate(rows[start : start + NUM_RUN_COLOURS]):
            curves += [Curve(*_columns(course), run_colour(index), marker=".") for course in row.courses]
            curves.append(Curve(*_columns(row.ends), run_colour(index), "", marker="x"))
        found.append(
            Panel(
                "True reward at equal KL",
                "Higher at the same KL is better. A line is a seed's course in training, or an algorithm's ends at "
                "half, once and twice the leash; a cross is where a seed ended.",
                curves,
                x_label="KL to the reference, nats (square-root scale)",
                sqrt_x=True,
            )
        )
    return found


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [max(0.0, kl) for kl, _ in points], [truth for _, truth in points]
