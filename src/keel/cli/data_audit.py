"""`keel data audit`: what is wrong, odd or lopsided in preference data."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keel.cli.data import (
    FieldOption,
    Files,
    KindName,
    KindOption,
    Layout,
    LayoutOption,
    MapOption,
    OutcomeOption,
    kind_of,
    refuse_out,
    sources_of,
)

# `keel --help` loads every command: what only a running one needs is imported there.
if TYPE_CHECKING:
    from keel.config.data import DataConfig
    from keel.data.audit.audit import Audit
    from keel.data.audit.clean import Cleaned
    from keel.data.audit.gather import Source

_TOLD_EVERY = 20.0  # seconds between two lines where there is no terminal to redraw


def audit(
    files: Files,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="What a model of FILE… is judged on and not trained on. Repeatable."),
    ] = None,
    kind: KindOption = None,
    layout: LayoutOption = Layout.AUTO,
    field: FieldOption = None,
    outcome: OutcomeOption = None,
    map: MapOption = None,
    validation: Annotated[
        float, typer.Option(min=0, max=0.99, help="Without --held-out: the share of prompts that a stage holds out.")
    ] = 0.05,
    together: Annotated[
        str | None, typer.Option(metavar="REGEX", help="As the key of that name: prompts held out together.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to list for each finding.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every figure and every row.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the findings as a page.")] = None,
    clean: Annotated[
        Path | None, typer.Option(help="The .jsonl file to write what is fit to use to; the rest goes beside it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --clean if it is there.")] = False,
) -> None:
    """Find duplicates, contradictions, cycles, biases and leaks in comparisons, rankings, ratings or labels.

    Texts are read once and not kept, so a million pairs fit in memory. Rows count from 0.

    Example: keel data audit comparisons.jsonl --held-out test.jsonl --clean fit.jsonl
    """
    from keel.data.audit.as_json import as_json as json_of
    from keel.data.audit.audit import audit as audited
    from keel.data.audit.clean import beside
    from keel.data.audit.clean import clean as cleaned
    from keel.report.audit import write_audit
    from keel.runs.files import to_json, written

    if clean is not None:
        for out in (clean, beside(clean)):
            refuse_out("--clean", out, force)
    given = sources_of(files, layout, field, outcome, map, validation=validation, together=together)
    sources = [_source(config, kind, False if held_out else None) for config in given]
    sources += [_source(config, kind, True) for config in sources_of(held_out or [], layout, field, outcome, map)]
    with _Telling() as telling:
        found = audited(sources, telling)
        if clean is not None:
            telling(f"writing {clean}", 0)
    cleaned_to = None
    if clean is not None:
        with written(clean):
            cleaned_to = cleaned(found, clean)
    if html is not None:
        write_audit(found, html)
    if as_json:
        typer.echo(to_json(json_of(found), indent=2))
    else:
        _show(found, cleaned_to, rows)


def _source(config: DataConfig, name: KindName | None, held_out: bool | None) -> Source:
    from keel.data.audit.gather import Source
    from keel.data.convert import DEMONSTRATIONS, PROMPTS
    from keel.data.read import read_rows
    from keel.errors import UserError

    kind = kind_of(config, name)
    if kind is PROMPTS and all(row.value is None for row in read_rows(config)):
        raise UserError(f"{config.name} holds no row that can be read; `keel data check {config.name}` says why")
    if kind in (PROMPTS, DEMONSTRATIONS):
        raise UserError(
            f"{config.name} holds {kind.name}, and what is audited is preferences: comparisons, rankings, ratings or "
            "labels; name its columns, such as --field chosen=better --field rejected=worse."
        )
    return Source(config, kind, held_out)


class _Telling:
    """Says on standard error what is being done: a line that is redrawn, or one now and then where there is none."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said = time.monotonic()
        self._started = self._said

    def __enter__(self) -> _Telling:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, what: str, count: int) -> None:
        now = time.monotonic()
        if self._live and now - self._said >= 0.1:
            self._said = now
            print(f"\r\x1b[K{self._line(what, count, now)}", end="", file=sys.stderr, flush=True)
        elif now - self._said >= _TOLD_EVERY:
            self._said = now
            print(self._line(what, count, now), file=sys.stderr, flush=True)

    def _line(self, what: str, count: int, now: float) -> str:
        return f"{what}: {count:,} records, {now - self._started:.0f} s"


def _show(found: Audit, written: Cleaned | None, rows: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keel.cli.console import printable
    from keel.report import audit_words

    console = Console()

    def table(title: str, header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> None:
        shown = Table(*header, title=title, title_justify="left", box=box.SIMPLE_HEAD)
        shown.columns[0].no_wrap = True
        for line in lines:
            shown.add_row(*(Text(printable(cell)) for cell in line))
        console.print(shown)

    console.print(audit_words.summary(found), style="bold", markup=False, highlight=False, soft_wrap=True)
    unfit = audit_words.unfit(found)
    lines = audit_words.findings(found, rows)
    if lines:
        marked = [("✕ " if line.name in unfit else "  ") + line.name for line in lines]
        table(
            "Findings (✕: not fit to use, left out by --clean)",
            ("finding", "rows", "which", "meaning"),
            [(name, line.value, line.which, line.meaning) for name, line in zip(marked, lines, strict=True)],
        )
    figures = [(line.name, line.value, line.which, line.meaning) for line in audit_words.figures(found)]
    table("Figures (95% intervals)", ("figure", "value", "which", "meaning"), figures)
    people = audit_words.people(found)
    if people:
        table("Annotators", audit_words.PEOPLE, people)
    if written is not None:
        typer.echo(f"{written.kept:,} fit to use written to {written.out}")
        typer.echo(f"{sum(written.left_out.values()):,} left out, each with its reason, listed in {written.beside}")
        if written.unsure:
            typer.echo(f"{written.unsure:,} prompts have too many like them to tell if one is held out: audit it again")
