"""`keel evaluate`: a recipe's policy, or how far a reward model can be trusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from keel.cli.options import Extend, FreshFrom, Set
from keel.cli.run import walk

if TYPE_CHECKING:
    from keel.cli.console import TerminalConsole
    from keel.config.base import Config
    from keel.config.rewards import RewardSource

C = TypeVar("C", bound="Config")
_LONGEST = 100  # characters of a folder's name
_Out = Annotated[
    Path | None, typer.Option(help="Where it goes; runs/NAME of the recipe, the run itself, or runs/assessment-REWARD.")
]
_Force = Annotated[bool, typer.Option("--force", help="Replace the assessment of another reward, or on other data.")]


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN|REWARD",
            help="A recipe: its policy. A run's directory: its reward model, on what that held out. A reward model's "
            "directory or hub name, a service's URL, or module:function: on --data.",
        ),
    ],
    out: _Out = None,
    set_: Set = None,
    fresh_from: FreshFrom = None,
    extend: Extend = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Judgements to hold a reward against, as a stage reads them. Repeatable.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The policy it is to train: it is judged on its replies too.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="What the reference replies to; the data's prompts.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of the reference's replies; 64.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Prompts for replies and probes; 128.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judgements to read of each of --data.")] = None,
    max_unusable: Annotated[
        float | None, typer.Option(min=0, max=1, help="Stop where a larger share of --data is unusable; 0.05.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Which label of a model is its score.")] = None,
    template: Annotated[str | None, typer.Option(help="Who writes what a model reads, as in a recipe.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of replies and probes; 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    force: _Force = False,
) -> None:
    """Judge a recipe's policy against its reference on held-out prompts; or a reward model, on what it has not seen.

    Of a reward: accuracy and what it depends on, calibration, length, probes that no one should prefer, and whether
    a score depends on its batch.

    **Example:** `keel evaluate runs/demo/polite`
    """
    from keel.errors import UserError

    of_policy: dict[str, object] = {"--set": set_, "--fresh-from": fresh_from, "--extend": extend or None}
    settings: dict[str, Any] = {"samples": samples, "seed": seed, "device": device, "reference": reference}
    of_reward: dict[str, object] = {f"--{key}": value for key, value in settings.items()}
    of_reward |= {"--data": data, "--prompts": prompts, "--max-new-tokens": max_new_tokens, "--limit": limit}
    of_reward |= {"--max-unusable": max_unusable, "--label": label, "--template": template, "--force": force or None}
    is_recipe = what.endswith((".yaml", ".yml")) or Path(what).is_file()
    given = [key for key, value in (of_reward if is_recipe else of_policy).items() if value is not None]
    if given:
        what_is = "a recipe, which says everything itself" if is_recipe else "a reward, which is no recipe"
        raise UserError(f"{given[0]} has no effect on {what_is}; leave it out")
    if is_recipe:
        walk(Path(what), out, set_, only="evaluate", fresh_from=fresh_from, extend=extend)
        return
    kept = {key: value for key, value in settings.items() if value is not None}
    if max_new_tokens is not None:
        kept["max_new_tokens"] = max_new_tokens
    of_data = {"limit": limit, "max_unusable": max_unusable}
    _assess(what, out, data or [], prompts, of_data, {"label": label, "template": template}, kept, force)


def _assess(
    what: str,
    out: Path | None,
    data: list[str],
    prompts: str | None,
    of_data: dict[str, float | None],
    reading: dict[str, str | None],
    settings: dict[str, Any],
    force: bool,
) -> None:
    from keel.config.data import DataConfig
    from keel.errors import UserError
    from keel.runs.layout import RUN

    if out is not None and out.suffix in (".html", ".json"):
        raise UserError(f"--out {out}: it is a folder, which the page and its figures go to; give a name for one")
    is_run = (Path(what) / RUN).is_file()
    if not data and not is_run:
        raise UserError(f"there is nothing to judge {what} on: give comparisons with --data FILE, or a run's directory")
    reading_data = {key: value for key, value in of_data.items() if value is not None}
    if reading_data and not data:
        raise UserError(
            "--limit and --max-unusable are of --data; a run's held-out comparisons are read as it read them"
        )
    if not is_run and "reference" not in settings and (prompts is not None or "max_new_tokens" in settings):
        raise UserError("--prompts and --max-new-tokens are of the --reference's replies; give one, or leave them out")
    if is_run and any(reading.values()):
        raise UserError("--label and --template have no effect on a run, whose model is read as it was trained")
    sources = [_valid(DataConfig, one) for one in data]
    settings["data"] = tuple(one.model_copy(update={"validation": 0.0, **reading_data}) for one in sources)
    if prompts is not None:
        settings["prompts"] = _valid(DataConfig, prompts).model_copy(update={"validation": 0.0})

    from keel.build.assess import Asked, assess_reward, is_of, of_run  # torch: no sooner than a mistake is named
    from keel.cli.console import TerminalConsole
    from keel.config.sampling import SamplingConfig
    from keel.report.assessment import FILE
    from keel.report.assessment_page import write
    from keel.report.page import write_report
    from keel.runs import files

    if "max_new_tokens" in settings:
        settings["sampling"] = SamplingConfig(max_new_tokens=settings.pop("max_new_tokens"))
    asked = of_run(Path(what), **settings) if is_run else Asked(_reward(what, reading), **settings)
    folder = out or (Path(what) / "reward" if is_run else Path("runs") / f"assessment-{_slug(what)}")
    if not force:
        _refuse_another(folder / FILE, partial(is_of, asked=asked))
    with TerminalConsole() as console:
        found = assess_reward(asked, console)
    _print(console, found)
    if is_run and out is None:
        with files.written(Path(what)):
            files.write_json(folder / FILE, found)
            print(f"Report: {write_report([Path(what)], Path(what) / 'report.html')}")
    else:
        with files.written(folder):
            print(f"Report: {write(found, folder)}")


def _slug(what: str) -> str:
    """Of a path, a name or an address: what may be the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", what).strip("-.")[-_LONGEST:]


def _refuse_another(file: Path, is_own: Callable[[Mapping[str, Any]], bool]) -> None:
    """Raises UserError where the file is there and holds what is not one's own to replace."""
    from keel.errors import UserError
    from keel.runs import files

    earlier = files.read_json(file) if file.is_file() else None
    if earlier is not None and not is_own(earlier):
        of, on = earlier.get("source"), ", ".join(earlier.get("data", ()))
        raise UserError(f"{file} is there already, of {of} on {on}; give another --out, or --force to replace it")


def _reward(what: str, reading: dict[str, str | None]) -> RewardSource:
    from keel.config.data import is_reference
    from keel.config.rewards import RewardSource

    kind = "service" if what.startswith(("http://", "https://")) else "function" if is_reference(what) else "model"
    name = {"name": "service"} if kind == "service" else {}
    given: dict[str, Any] = {key: value for key, value in reading.items() if value is not None}
    if str(given.get("label", "")).isdigit():
        given["label"] = int(given["label"])
    return _valid(RewardSource, {kind: what, **name, **given})


def _valid(kind: type[C], given: object) -> C:
    """The record, or a UserError with what is wrong with it."""
    from pydantic import ValidationError

    from keel.errors import UserError

    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _print(console: TerminalConsole, found: dict[str, Any]) -> None:
    from keel.report.assessment import reply_rows, rows

    console.table("The reward model", ["", "value"], [[row.label, *row.values] for row in rows([found])])
    header, *lines = reply_rows(found)
    console.table("Replies that it meets, and probes", header, lines)
    for sentence in found["alarms"]:
        console.say(f"✕ {sentence}")
    if not found["alarms"]:
        console.say("✓ No alarm.")
