"""`keel run` and the stages as commands of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from keel.cli.options import Extend, Fork, FreshFrom, Out, Processes, RecipePath, Restarts, Reuse, Set, Smoke

_STAGES = {
    "sft": "Supervised fine-tuning: learn to answer as the demonstrations do.",
    "collect": "Sample responses and have them compared by the recipe's annotator.",
    "reward": "Train the reward model on comparisons, rankings, ratings or labels.",
    "direct": "Train the policy on comparisons themselves: DPO, IPO, KTO, ORPO, SimPO.",
    "ppo": "Train the policy against the rewards, on a KL leash.",
}


def run(
    recipe: RecipePath,
    out: Out = None,
    set_: Set = None,
    reuse: Reuse = None,
    fresh_from: FreshFrom = None,
    fork: Fork = None,
    extend: Extend = False,
    smoke: Smoke = False,
    processes: Processes = 1,
    restarts: Restarts = 0,
) -> None:
    """Walk a recipe from its first stage to the report.

    Finished stages are skipped, an interrupted one goes on from its last checkpoint.

    **Example:** `keel run recipes/tinystories.yaml --set ppo.kl.coef=0.1 --out runs/shorter-leash`
    """
    if processes > 1:
        _launch(processes, restarts)
    elif smoke:
        without_effect = {"--out": out, "--reuse": reuse, "--fresh-from": fresh_from, "--fork": fork}
        _smoke(recipe, set_, without_effect | {"--extend": extend or None})
    else:
        walk(recipe, out, set_, reuse=reuse, fresh_from=fresh_from, fork=fork, extend=extend)


def _launch(processes: int, restarts: int) -> None:
    """This same command, in each of the processes without the options that are for the one that starts them."""
    import sys

    from keel.dist.launcher import launch
    from keel.errors import UserError

    if "--smoke" in sys.argv:
        raise UserError("--processes has no effect with --smoke, which measures one process; leave it out")
    arguments: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument in ("--processes", "--restarts"):
            next(given)
        elif not argument.startswith(("--processes=", "--restarts=")):
            arguments.append(argument)
    launch(processes, restarts, arguments)


def add_stage_commands(app: typer.Typer) -> None:
    """`keel sft RECIPE` and its siblings: one stage alone."""
    for name, purpose in _STAGES.items():
        app.command(name)(_stage_command(name, purpose))


def _stage_command(name: str, purpose: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath, out: Out = None, set_: Set = None, fresh_from: FreshFrom = None, extend: Extend = False
    ) -> None:
        walk(recipe, out, set_, only=name, fresh_from=fresh_from, extend=extend)

    command.__doc__ = f"{purpose}\n\n**Example:** `keel {name} recipes/tinystories.yaml --out runs/tinystories`"
    return command


def _smoke(recipe_path: Path, overrides: list[str] | None, without_effect: Mapping[str, object]) -> None:
    from keel.config.recipe import load_recipe
    from keel.errors import UserError

    given = [option for option, value in without_effect.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} has no effect with --smoke, which keeps nothing; leave it out")
    recipe = load_recipe(recipe_path, overrides or ())

    from keel.build.forecast import clock, total
    from keel.build.smoke import smoke
    from keel.cli.console import TerminalConsole

    with TerminalConsole() as console:
        forecasts = smoke(recipe, console)
    rows = [
        [
            one.stage,
            f"{one.peak_bytes / 2**30:.2f} GiB",
            f"{clock(one.seconds_a_step)} a{'n' if one.unit[0] in 'aeiou' else ''} {one.unit}",
            str(one.steps),
            clock(one.seconds),
        ]
        for one in forecasts
    ]
    console.table("What to expect", ["stage", "peak memory", "time", "of them", "whole stage"], rows)
    for one in forecasts:
        if one.roles:
            parts = ", ".join(f"{role} {clock(seconds)}" for role, seconds in one.roles.items())
            console.say(f"{one.stage}, of each {one.unit}: {parts}.")
    console.say(
        f"In all about {clock(total(forecasts))}, if the machine stays as busy as it was and no row is too long."
    )


def walk(
    recipe_path: Path,
    out: Path | None,
    overrides: list[str] | None,
    *,
    only: str | None = None,
    **options: Any,
) -> None:
    """Run a recipe, or `only` one stage of it, to the report."""
    from keel.config.recipe import load_recipe
    from keel.dist.launcher import leads
    from keel.errors import UserError

    recipe = load_recipe(recipe_path, overrides or ())
    if only is not None and getattr(recipe, only) is None:
        raise UserError(f"{recipe_path} has no `{only}:` section, so there is nothing for `keel {only}` to do")

    from keel.build import run_recipe  # torch: no sooner than a mistake in the recipe is named
    from keel.cli.console import TerminalConsole
    from keel.cli.summary import print_summary
    from keel.report.page import write_report
    from keel.runs.console import SilentConsole
    from keel.runs.leaving import heeding
    from keel.runs.read import read_run

    folder = out or Path("runs") / recipe.name
    if not leads():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # process 0 finishes the step, and dismisses this one
        run_recipe(recipe, folder, console=SilentConsole(), only=only, **options)
        return
    with TerminalConsole() as console, heeding():
        run_recipe(recipe, folder, console=console, only=only, **options)
    page = write_report([folder], folder / "report.html")
    print_summary(console, [read_run(folder)])
    console.say(f"Report: {page}")
