"""The page of `keel verify`: its tables and pictures in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from keel.report.page import drawing, environment
from keel.verify.result import Group, Result
from keel.verify.words import measured


def render(results: Sequence[Result], seconds: float) -> str:
    """The page as text: a table a group, and below it what its checks have to show."""
    pages = environment()
    figures = drawing()
    groups = [
        {
            "title": group.value,
            "anchor": group.name.lower(),
            "results": [(result, measured(result)) for result in own],
            "tables": [table for result in own if result.finding for table in result.finding.tables],
            "figures": figures([panel for result in own if result.finding for panel in result.finding.panels]),
        }
        for group in Group
        if (own := [result for result in results if result.group is group])
    ]
    page: str = pages.get_template("verify.html.j2").render(
        css=Markup(pages.get_template("report.css").render()),
        groups=groups,
        num_checks=len(results),
        missed=[result.name for result in results if not result.passed],
        seconds=seconds,
    )
    return page
