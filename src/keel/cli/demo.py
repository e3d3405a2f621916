"""`keel demo`: the whole pipeline on the embedded world, twice, with opposite tastes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from keel.cli.options import FreshFrom, Set


class Taste(StrEnum):
    """Which scripted annotator gives the feedback."""

    POLITE = "polite"
    TERSE = "terse"
    BOTH = "both"


def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go, one directory a taste.")] = Path("runs/demo"),
    taste: Annotated[Taste, typer.Option(help="One taste, or both from one supervised model.")] = Taste.BOTH,
    set_: Set = None,
    fresh_from: FreshFrom = None,
) -> None:
    """From nothing to two aligned models in minutes: the same start, two tastes, shown side by side.

    A small language of everyday requests is generated; a model learns it from nothing; two scripted annotators
    (one likes politeness, one brevity) compare its replies; each gets a reward model and a policy.

    **Example:** `keel demo --taste polite --set ppo.kl.coef=0 --out runs/no-leash`
    """
    from keel.build import run_recipe
    from keel.cli.console import TerminalConsole
    from keel.cli.summary import print_summary
    from keel.demo.recipe import demo_recipe
    from keel.report.page import write_report
    from keel.runs.read import read_run

    tastes = [Taste.POLITE, Taste.TERSE] if taste is Taste.BOTH else [taste]
    folders: list[Path] = []
    with TerminalConsole() as console:
        for one in tastes:
            console.heading(f"the {one} taste")
            run_recipe(
                demo_recipe(one, set_ or ()),
                out / one,
                console=console,
                reuse=folders[0] if folders else None,
                fresh_from=fresh_from,
            )
            folders.append(out / one)
    page = write_report(folders, out / "report.html")
    print_summary(console, [read_run(folder) for folder in folders])
    console.say(f"Report: {page}")
