"""What `keel data` found in a source, as tables or JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keel.cli.console import printable
from keel.data.reasons import Check, Finding, Reason

Found = dict[Reason, tuple[Finding, ...]]


def report(source: str, kind: str, check: Check) -> dict[str, Any]:
    """Everything that was found, JSON-ready."""
    faults, on_purpose, warnings = _sorts(check)
    return {
        "file": source,
        "kind": kind,
        "layouts": dict(check.layouts),
        "rows": check.rows,
        "total": check.total,
        "usable": check.usable,
        "unusable": _listed(faults),
        "left out on purpose": _listed(on_purpose),
        "warnings": _listed(warnings),
    }


def show(source: str, kind: str, check: Check, rows: int) -> None:
    """One line that sums up, and a table a sort of finding, with up to `rows` row numbers a reason."""
    console = Console()
    console.print(
        printable(f"{source}: {_summary(kind, check)}"), style="bold", markup=False, highlight=False, soft_wrap=True
    )
    faults, on_purpose, warnings = _sorts(check)
    titles = ("Unusable", "Left out on purpose", "Warnings (no reason to leave a row out)")
    for title, found in zip(titles, (faults, on_purpose, warnings), strict=True):
        if found:
            console.print(_table(title, found, source, rows))


def _sorts(check: Check) -> tuple[Found, Found, Found]:
    """Faults, what is left out on purpose, warnings."""
    table = check.table()
    return (
        {reason: found for reason, found in table.items() if not (reason.is_warning or reason.is_on_purpose)},
        {reason: found for reason, found in table.items() if reason.is_on_purpose},
        {reason: found for reason, found in table.items() if reason.is_warning},
    )


def _listed(found: Found) -> dict[str, list[dict[str, Any]]]:
    return {
        reason.value: [{"file": one.file, "row": one.row, "detail": one.detail} for one in findings]
        for reason, findings in found.items()
    }


def _summary(kind: str, check: Check) -> str:
    several = f"{check.total:,} " if check.rows not in (None, check.total) else ""
    rows = check.total if check.rows is None else check.rows
    share = f", {check.unusable_share:.2%}" if check.unusable else ""
    left_out = f", {check.on_purpose:,} left out on purpose" if check.on_purpose else ""
    return f"{rows:,} rows read as {several}{kind}{_layouts(check)}, {check.unusable:,} unusable{share}{left_out}"


def _layouts(check: Check) -> str:
    """The layout, and of several how many records came in each."""
    if len(check.layouts) > 1:
        return f" (layouts {', '.join(f'{name} {count:,}' for name, count in check.layouts.items())})"
    return "".join(f" (layout {name})" for name in check.layouts)


def _table(title: str, found: Found, source: str, rows: int) -> Table:
    table = Table("reason", "rows", "which", "meaning", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    table.columns[1].justify = "right"
    for reason, findings in found.items():
        places = list(dict.fromkeys(finding.place(source) for finding in findings))  # a row may have several
        which, more = ", ".join(places[:rows]), ", …" if len(places) > rows else ""
        first = findings[0]
        detail = f" Row {first.place(source)}: {first.detail}." if first.detail else ""
        table.add_row(
            reason.value, f"{len(findings):,}", Text(printable(which + more)), Text(printable(reason.sentence + detail))
        )
    return table
