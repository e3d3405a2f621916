"""`keel doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keel.cli.options import Set


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: look also for everything that it names.", show_default=False)
    ] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the run would go; runs, or runs/NAME of the recipe, unless given.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that the run will have, for the memory each will take.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, and a recipe, before a run: nothing is trained.

    ✓ is well, ✗ would stop a run (with the mend), – is worth knowing. Exits with 1 if there is a ✗. How long a run
    takes depends on how long its texts are, so it is measured: `keel run RECIPE --smoke`.

    **Example:** `keel doctor mine.yaml`
    """
    import dataclasses
    import json

    from huggingface_hub import constants

    from keel.config.recipe import load_recipe
    from keel.doctor.finding import Mark
    from keel.doctor.hub import check_hub
    from keel.doctor.machine import check_machine

    loaded = load_recipe(recipe, set_ or ()) if recipe else None
    runs = out or (Path("runs") / loaded.name if loaded else Path("runs"))
    hub = check_hub()
    if hub.mark is not Mark.GOOD:  # else each model that is looked for would be asked for again and again
        constants.HF_HUB_OFFLINE = True
    findings = [*check_machine(runs), hub]

    from keel.doctor.computing import check_computing  # torch

    findings += check_computing()
    if loaded is not None:
        from keel.doctor.memory import check_memory
        from keel.doctor.recipe import check_recipe
        from keel.doctor.space import check_space

        findings += [
            *check_recipe(loaded, runs),
            *check_memory(loaded, runs, processes=processes, shard=loaded.parallel.shard),
            *check_space(loaded, runs),
        ]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        signs = {Mark.GOOD: "✓", Mark.BAD: "✗", Mark.NOTE: "–"}
        for finding in findings:
            typer.echo(f"{signs[finding.mark]} {finding.what}: {finding.said}")
            if finding.mend:
                typer.echo(f"    → {finding.mend}")
    if any(finding.mark is Mark.BAD for finding in findings):
        raise typer.Exit(1)
