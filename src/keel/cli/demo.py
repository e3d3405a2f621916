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
    me: Annotated[bool, typer.Option("--me", help="Your own taste: judge some 40 pairs with the arrow keys.")] = False,
    pairs: Annotated[
        int | None, typer.Option(min=10, max=1000, help="With --me: pairs to judge; 40 unless given.")
    ] = None,
    set_: Set = None,
    fresh_from: FreshFrom = None,
) -> None:
    """From nothing to two aligned models in minutes: the same start, two tastes, shown side by side.

    A small language of everyday requests is generated; a model learns it from nothing; two scripted annotators
    (one likes politeness, one brevity) compare its replies; each gets a reward model and a policy.

    With `--me` you are the annotator: two replies at a time, ← or → for the better one. It goes on where it was left.

    **Example:** `keel demo --taste polite --set ppo.kl.coef=0 --out runs/no-leash`
    """
    from keel.errors import UserError

    if me and taste is not Taste.BOTH:
        raise UserError(f"--taste {taste} has no effect with --me, where the taste is yours; leave one of them out")
    if pairs is not None and not me:
        raise UserError("--pairs has no effect without --me; add it, or leave --pairs out")
    if me:
        from keel.cli.demo_me import demo_me

        demo_me(out / "me", num_pairs=pairs, overrides=set_ or (), fresh_from=fresh_from)
        return

    from keel.build import run_recipe
    from keel.cli.console import TerminalConsole
    from keel.cli.summary import print_summary
    from keel.demo.recipe import demo_recipe
    from keel.report.page import write_report
    from keel.runs.leaving import heeding
    from keel.runs.read import read_run

    tastes = [Taste.POLITE, Taste.TERSE] if taste is Taste.BOTH else [taste]
    folders: list[Path] = []
    with TerminalConsole() as console, heeding():
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
