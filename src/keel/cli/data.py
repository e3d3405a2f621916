"""`keel data`: look at data before a model sees it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

# `keel --help` loads every command: what only a running one needs is imported there.
if TYPE_CHECKING:
    from rich.table import Table

    from keel.config.data import DataConfig, FieldName
    from keel.data.convert import Kind
    from keel.data.reasons import Check, Finding, Reason

data_app = typer.Typer(name="data", help="Look at data before a model sees it.", no_args_is_help=True)


@data_app.callback()
def _group() -> None:
    """Look at data before a model sees it."""


class KindName(StrEnum):
    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    COMPARISONS = "comparisons"


@data_app.command(no_args_is_help=True)
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="JSON lines (gzip too), hub names, or module:function.")
    ],
    kind: Annotated[
        KindName | None, typer.Option(help="What the rows are; guessed from the columns unless given.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Read a field from another column. Repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --max-tokens: the model whose tokenizer and template count.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="With --model: longer rows are too long.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to list for each reason.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every row and its detail.")] = False,
) -> None:
    """Count the rows that cannot be used, by reason, and say which they are (rows count from 0).

    Exits with 1 if more than 5 % of a file's rows are unusable, or all of them.

    Example: keel data check comparisons.jsonl --field chosen=better --field rejected=worse
    """
    from keel.config.data import DataConfig
    from keel.data.load import read_records

    mapping = _mapping(field or [])
    fits = _fits(model, max_tokens)
    reports = []
    healthy = True
    for file in files:
        config = DataConfig.model_validate(file).model_copy(update={"fields": mapping})
        kind_here = _kind(config, kind)
        _, result = read_records(config, kind_here, fits)
        healthy = healthy and result.usable > 0 and result.unusable_share <= config.max_unusable
        if as_json:
            reports.append(_report(file, kind_here, result))
        else:
            _show(file, kind_here, result, rows)
    if as_json:
        typer.echo(json.dumps(reports, indent=2, ensure_ascii=False))
    if not healthy:
        raise typer.Exit(1)


def _fits(model: str | None, max_tokens: int | None) -> Callable[[Any], bool] | None:
    """Whether a record keeps to the limit, where one is asked for."""
    if (model is None) != (max_tokens is None):
        raise typer.BadParameter("what is too long is counted by a tokenizer: give --model and --max-tokens together")
    if model is None or max_tokens is None:
        return None
    from keel.build import load_renderer

    renderer = load_renderer(model)
    return lambda record: renderer.length(record) <= max_tokens


def _mapping(assignments: list[str]) -> dict[FieldName, str]:
    """From `--field ours=theirs`."""
    from keel.config.data import FieldName

    known: tuple[FieldName, ...] = get_args(FieldName)
    mapping: dict[FieldName, str] = {}
    for assignment in assignments:
        ours, _, theirs = assignment.partition("=")
        if not theirs:
            raise typer.BadParameter(f"{assignment!r} should look like chosen=better.", param_hint="--field")
        field = next((name for name in known if name == ours), None)
        if field is None:
            close = difflib.get_close_matches(ours, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise typer.BadParameter(f"{ours!r} is no field; {hint}", param_hint="--field")
        mapping[field] = theirs
    return mapping


def _kind(config: DataConfig, name: KindName | None) -> Kind[Any]:
    """The kind asked for, else the one that fits the first row that can be read."""
    from keel.data.convert import COMPARISONS, DEMONSTRATIONS, PROMPTS, guess_kind
    from keel.data.read import read_rows
    from keel.errors import UserError

    if name is not None:
        return {kind.name: kind for kind in (PROMPTS, DEMONSTRATIONS, COMPARISONS)}[name]
    columns = next((row.value for row in read_rows(config) if row.value is not None), None)
    if columns is None:
        return PROMPTS  # no row can be read, which is what the check will say of any kind
    guess = guess_kind(columns, config.fields)
    if guess is None:
        raise UserError(
            f"{config.name} has the columns {', '.join(columns) or '(none)'}, which fit no kind of record; "
            "say what they are, such as --field prompt=question --field response=answer."
        )
    return guess


def _report(file: str, kind: Kind[Any], check: Check) -> dict[str, Any]:
    def listed(warnings: bool) -> dict[str, Any]:
        return {
            reason.value: [{"row": finding.row, "detail": finding.detail} for finding in findings]
            for reason, findings in check.table().items()
            if reason.is_warning == warnings
        }

    return {
        "file": file,
        "kind": kind.name,
        "total": check.total,
        "usable": check.usable,
        "unusable": listed(warnings=False),
        "warnings": listed(warnings=True),
    }


def _show(file: str, kind: Kind[Any], check: Check, rows: int) -> None:
    from rich.console import Console

    console = Console()
    share = f", {check.unusable_share:.2%}" if check.unusable else ""
    console.print(
        f"{file}: {check.total:,} rows read as {kind.name}, {check.unusable:,} unusable{share}",
        style="bold",
        markup=False,
        highlight=False,
    )
    for title, warnings in (("Unusable", False), ("Warnings (no reason to leave a row out)", True)):
        found = {reason: f for reason, f in check.table().items() if reason.is_warning == warnings}
        if found:
            console.print(_table(title, found, rows))


def _table(title: str, found: dict[Reason, tuple[Finding, ...]], rows: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("reason", "rows", "which", "meaning", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    table.columns[1].justify = "right"
    for reason, findings in found.items():
        which = ", ".join(str(finding.row) for finding in findings[:rows])
        more = ", …" if len(findings) > rows else ""
        first = f" Row {findings[0].row}: {findings[0].detail}." if findings[0].detail else ""
        table.add_row(reason.value, f"{len(findings):,}", which + more, Text(reason.sentence + first))
    return table
