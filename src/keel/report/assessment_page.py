"""The page of `keel evaluate REWARD`: one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from keel.report.assessment import FILE, about, own_reliability, panels, reply_rows, rows, tables
from keel.report.figures import run_colour
from keel.report.page import drawing, environment
from keel.runs import files

PAGE = "assessment.html"


def write(found: dict[str, Any], folder: Path) -> Path:
    """assessment.json, and beside it the page, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / FILE, found)
    files.write_bytes(folder / PAGE, render(found).encode("utf-8", "replace"))
    return folder / PAGE


def render(found: dict[str, Any]) -> str:
    """The page as text. Whatever comes from the data is escaped."""
    pages, drawn = environment(), [(found, run_colour(0))]
    page: str = pages.get_template("assessment.html.j2").render(
        css=Markup(pages.get_template("report.css").render()),
        found=found,
        about=about(found),
        rows=rows([found]),
        replies=reply_rows(found),
        tables=tables(found),
        figures=drawing()([*own_reliability(drawn), *panels(drawn)]),
    )
    return page
