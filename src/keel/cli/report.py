"""`keel report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="One run's directory, or several to be shown side by side.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; report.html in the first run unless given.")
    ] = None,
) -> None:
    """Write the self-contained report page of one or more runs, finished or not.

    **Example:** `keel report runs/demo/polite runs/demo/terse --out both.html`
    """
    from keel.report.page import write_report

    print(f"Report: {write_report(runs, out or runs[0] / 'report.html')}")
