"""`keel data`: look at data before a model sees it, and turn it into Keel's own form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

# `keel --help` loads every command: what only a running one needs is imported there.
if TYPE_CHECKING:
    from keel.config.data import DataConfig
    from keel.data.convert import Kind
    from keel.data.reading import Reading
    from keel.schema import AnyRecord

_GUESSED_FROM = 100  # rows

data_app = typer.Typer(name="data", help="Look at data before a model sees it.", no_args_is_help=True)


@data_app.callback()
def _group() -> None:
    """Look at data before a model sees it."""


class KindName(StrEnum):
    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    COMPARISONS = "comparisons"
    RANKINGS = "rankings"
    RATINGS = "ratings"
    LABELS = "labels"


class Layout(StrEnum):
    AUTO = "auto"
    KEEL = "keel"
    MESSAGES = "messages"
    COMPLETION = "completion"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    HH = "hh"
    PAIRS = "pairs"
    TEXT = "text"


Files = Annotated[
    list[str], typer.Argument(metavar="FILE…", help="Files, folders, globs, hub names, or module:function.")
]
KindOption = Annotated[
    KindName | None, typer.Option(help="What the rows are; guessed from the columns unless given.")
]  # fmt: skip
LayoutOption = Annotated[Layout, typer.Option(help="How they are laid out; seen from the columns unless given.")]
FieldOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OURS=THEIRS",
        help="Read a field from another column; responses from several, with commas. Repeatable.",
    ),
]
OutcomeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE=OUTCOME", help="What a value of preferred stands for: first, second or tie. Repeatable."
    ),
]
MapOption = Annotated[
    str | None, typer.Option(metavar="MODULE:FUNCTION", help="Makes of each row another one, several, or None.")
]


@data_app.command(no_args_is_help=True)
def check(
    files: Files,
    kind: KindOption = None,
    layout: LayoutOption = Layout.AUTO,
    field: FieldOption = None,
    outcome: OutcomeOption = None,
    map: MapOption = None,
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
    from keel.cli.data_show import report, show
    from keel.data.load import read_records

    fits = _fits(model, max_tokens)
    reports = []
    healthy = True
    for config in sources_of(files, layout, field, outcome, map):
        kind_here = kind_of(config, kind)
        _, result = read_records(config, kind_here, fits)
        healthy = healthy and result.usable > 0 and result.unusable_share <= config.max_unusable
        if as_json:
            reports.append(report(config.name, kind_here.name, result))
        else:
            show(config.name, kind_here.name, result, rows)
    if as_json:
        typer.echo(json.dumps(reports, indent=2, ensure_ascii=False))
    if not healthy:
        raise typer.Exit(1)


@data_app.command(no_args_is_help=True)
def convert(
    files: Files,
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    kind: KindOption = None,
    layout: LayoutOption = Layout.AUTO,
    field: FieldOption = None,
    outcome: OutcomeOption = None,
    map: MapOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write what can be used of anything readable as Keel's own JSON lines, and say what was left out and why.

    The file appears when it is whole, or not at all.

    Example: keel data convert dialogues.json --out demos.jsonl --kind demonstrations
    """
    from keel.cli.data_show import show
    from keel.data.reading import Reading
    from keel.data.write import write_jsonl
    from keel.errors import UserError

    refuse_out("--out", out, force)
    configs = sources_of(files, layout, field, outcome, map)
    kinds = [kind_of(config, kind) for config in configs]
    other = next((n for n, found in enumerate(kinds) if found is not kinds[0]), None)
    if other is not None:
        raise UserError(
            f"{files[0]} holds {kinds[0].name} and {files[other]} {kinds[other].name}, and a file holds one kind; "
            "convert them apart, or say what both are with --kind."
        )
    readings: list[Reading[Any]] = [Reading(config, kinds[0]) for config in configs]
    write_jsonl(out, _usable(configs, readings))
    for config, reading in zip(configs, readings, strict=True):
        show(config.name, kinds[0].name, reading.check, 10)
    typer.echo(f"{sum(reading.check.usable for reading in readings):,} {kinds[0].name} written to {out}")


def refuse_out(option: str, out: Path, force: bool) -> None:
    """Raises UserError where JSON lines cannot, or must not, be written."""
    from keel.errors import UserError

    if out.suffix != ".jsonl":
        raise UserError(f"{option} {out}: what is written is JSON lines; end the name in .jsonl.")
    if not out.parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.parent}; make it first.")
    if out.exists() and not force:
        raise UserError(f"{option} {out} is there already; give --force to replace it.")


def _usable(configs: list[DataConfig], readings: list[Reading[Any]]) -> Iterator[AnyRecord]:
    """All records; a source without any is an error, before anything is written under its final name."""
    for config, reading in zip(configs, readings, strict=True):
        yield from reading
        reading.check.enforce(1.0, config.name)


def sources_of(
    files: list[str],
    layout: Layout,
    field: list[str] | None,
    outcome: list[str] | None,
    map: str | None,
    **more: Any,
) -> list[DataConfig]:
    """One source a file, all read the same way. Raises a parameter's error where the options do not fit."""
    from pydantic import ValidationError

    from keel.cli.data_options import fields_of, outcomes_of
    from keel.config.data import DataConfig

    shared = {"layout": layout.value, "fields": fields_of(field or []), "outcomes": outcomes_of(outcome or [])}
    try:
        bare = [DataConfig.model_validate(file) for file in files]
        return [
            DataConfig.model_validate({"path": each.path, "function": each.function, "map": map} | shared | more)
            for each in bare
        ]
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _fits(model: str | None, max_tokens: int | None) -> Callable[[Any], bool] | None:
    """Whether a record keeps to the limit, where one is asked for."""
    if (model is None) != (max_tokens is None):
        raise typer.BadParameter("what is too long is counted by a tokenizer: give --model and --max-tokens together")
    if model is None or max_tokens is None:
        return None
    from keel.build import load_renderer

    renderer = load_renderer(model)
    return lambda record: renderer.length(record) <= max_tokens


def kind_of(config: DataConfig, name: KindName | None) -> Kind[Any]:
    """The kind asked for, else the one that fits the first row that fits any."""
    from keel.data.convert import KINDS, PROMPTS, guess_kind
    from keel.data.read import read_rows
    from keel.errors import UserError

    if name is not None:
        return KINDS[name]
    rows = [row.value for row in islice(read_rows(config), _GUESSED_FROM) if row.value is not None]
    if not rows:
        return PROMPTS  # no row can be read, which is what the check will say of any kind
    guess = next((kind for kind in (guess_kind(row, config) for row in rows) if kind is not None), None)
    if guess is None:
        raise UserError(
            f"{config.name} has the columns {', '.join(rows[0]) or '(none)'}, which fit no kind of record; "
            f"say what they are, such as {_meant(rows[0])}."
        )
    return guess


def _meant(columns: Iterable[str]) -> str:
    """The options that map the columns whose names are a field's but for capitals and spaces, or an example."""
    from keel.config.data import FieldName

    fields = [(field, column) for field in get_args(FieldName) for column in columns if column.strip().lower() == field]
    mapped = " ".join(f"--field '{field}={column}'" for field, column in fields)
    return mapped or "--field prompt=question --field response=answer"
