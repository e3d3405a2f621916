"""`keel init`: from a model and data to a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
import yaml

from keel.runs.layout import STAGES

if TYPE_CHECKING:
    from keel.starters.facts import ModelFacts, SourceFacts
    from keel.starters.plan import Key

T = TypeVar("T")

_MODEL = "Model (a directory or a hub name)"
_DATA = "Data: demonstrations, comparisons or prompts (files, separated by spaces)"
_REWARD = "What is liked: module:function of a reward, or a reward model (leave empty for neither)"


def init(
    name: Annotated[str, typer.Argument(help="The recipe's name; it is written to NAME.yaml.")] = "mine",
    model: Annotated[str | None, typer.Option(help="A model's directory or hub name; asked for unless given.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Demonstrations, comparisons or prompts: a file, hub name or module:function. Repeatable."),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="What is liked: a reward function module:function, or a reward model.")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Prompts kept apart for the last stage.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace NAME.yaml if it is there.")] = False,
) -> None:
    """Look at your model and your data, and write a commented recipe that fits them.

    Nothing is trained. What is not given as an option is asked.

    **Example:** `keel init mine --model Qwen/Qwen2.5-0.5B --data demos.jsonl --data comparisons.jsonl --yes`
    """
    import re

    from keel.config.recipe import NAME_PATTERN
    from keel.errors import UserError

    file = Path(f"{name}.yaml")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"{name!r} cannot name a recipe: take letters, digits, dots, dashes and underscores")
    if file.exists() and not force:
        raise UserError(f"{file} is there already; give another NAME, or --force to replace it")
    if yes and (model is None or not data):
        raise UserError("with --yes nothing is asked, so give --model and --data")

    from keel.starters.look import look_at_data, look_at_model
    from keel.starters.plan import plan_recipe

    facts, renderer = look_at_model(model) if model else _ask(_MODEL, look_at_model)
    typer.echo(f"  {_about_model(facts)}")

    def look(names: list[str]) -> list[SourceFacts]:
        return [look_at_data(one, renderer) for one in names]

    sources = look(data) if data else _ask(_DATA, lambda answer: look(shlex.split(answer)))
    for source in sources:
        typer.echo(f"  {_about_source(source)}")
    if reward is None and not yes and all(source.kind != "comparisons" for source in sources):
        reward = typer.prompt(_REWARD, default="", show_default=False) or None
    kept_apart = look_at_data(held_out, renderer) if held_out else None
    plan = plan_recipe(name, facts, sources, judge=reward, held_out=kept_apart)
    typer.echo("  stages: " + " → ".join(key.name for key in plan.keys if key.name in STAGES))
    for note in plan.notes:
        typer.echo(f"  note: {note}")
    if yes or typer.confirm(f"Write {file}?", default=True):
        _write(file, plan.keys)


def _ask(question: str, read: Callable[[str], T]) -> T:
    """The answer, as `read` understands it; a mistake is named and the question asked again."""
    from keel.errors import UserError

    while True:
        try:
            return read(typer.prompt(question).strip())
        except UserError as error:
            typer.echo(f"  {error}")


def _write(file: Path, keys: Sequence[Key]) -> None:
    """The recipe, and the schema that its first line names where there is none, each in one step."""
    from keel.config.json_schema import schema_text
    from keel.config.recipe import parse_recipe
    from keel.runs.files import write_bytes
    from keel.starters.write import SCHEMA_FILE, recipe_text

    text = recipe_text(keys, str(file))
    parse_recipe(yaml.safe_load(text), str(file))  # what is written is a recipe
    write_bytes(file, text.encode())
    if not Path(SCHEMA_FILE).exists():
        write_bytes(Path(SCHEMA_FILE), schema_text().encode())
    typer.echo(f"Wrote {file}. Look it over; then: keel doctor {file}, and keel run {file}")


def _about_model(facts: ModelFacts) -> str:
    context = f"context {facts.context:,}" if facts.context else "no stated context"
    template = "a chat template of its own" if facts.own_template else "no chat template (Keel's plain one serves)"
    return f"{facts.family}, {facts.parameters:,} parameters, {context}, vocabulary {facts.vocabulary:,}, {template}"


def _about_source(source: SourceFacts) -> str:
    from keel.starters.facts import percentile

    def said(name: str, lengths: Sequence[int]) -> str:
        return f"{name} {percentile(lengths, 0.5)} (99 %: {percentile(lengths, 0.99)}, longest {max(lengths)})"

    lengths = [said("prompts", source.prompt_lengths)]
    lengths += [said("responses", source.response_lengths)] if source.response_lengths else []
    bad = f", {source.total - source.usable:,} unusable" if source.usable < source.total else ""
    chat = ", chat messages" if source.chat else ""
    return f"{source.name}: {source.total:,} {source.kind}{bad}{chat}; tokens: {', '.join(lengths)}"
