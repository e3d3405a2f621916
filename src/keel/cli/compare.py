"""`keel compare`: algorithms side by side from one start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keel.cli.options import RecipePath, Set

_DEFAULT = "ppo,rloo,grpo,dpo,best_of_16"


def compare(
    recipe: RecipePath,
    algorithms: Annotated[str, typer.Option(help="Names with commas; best_of_N for any N.")] = _DEFAULT,
    seeds: Annotated[str, typer.Option(help="Numbers with commas: each algorithm runs once for each.")] = "0,1,2",
    out: Annotated[Path | None, typer.Option(help="Where all runs go.  [default: runs/compare-NAME]")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the processor's cores.")] = 1,
    set_: Set = None,
) -> None:
    """Train with several algorithms from the same start, and put what they reach in one table.

    The recipe's first stages are made once; each algorithm and seed is then a run of its own with the recipe's ppo
    settings, as far as the algorithm reads them. What is finished is not run again.

    **Example:** `keel compare recipes/demo.yaml --algorithms ppo,rloo,dpo --seeds 0,1`
    """
    from keel.compare.algorithms import algorithm
    from keel.compare.findings import gather
    from keel.compare.page import HEADER, cells, equal_kl, write
    from keel.compare.plan import Planned, base_recipe, plan, score_scale
    from keel.compare.run import require_base, run_all
    from keel.config.recipe import load_recipe
    from keel.errors import UserError

    names = list(dict.fromkeys(name.strip() for name in algorithms.split(",") if name.strip()))
    for name in names:
        algorithm(name)
    try:
        numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise UserError(f"--seeds {seeds} should be numbers with commas, such as 0,1,2") from None
    chosen = load_recipe(recipe, set_ or ())
    folder = out or Path("runs") / f"compare-{chosen.name}"
    folder.mkdir(parents=True, exist_ok=True)
    plan(chosen, names, numbers, folder)  # what is wrong with the recipe is said before anything is trained
    print(f"Shared stages → {folder / 'base'}", flush=True)
    require_base(base_recipe(chosen), folder)
    runs = plan(chosen, names, numbers, folder, score_scale=score_scale(folder))
    done = 0

    def tell(run: Planned, error: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(runs)}] {run.name}: {error or 'finished'}", flush=True)

    failed = run_all(runs, folder, jobs=jobs, tell=tell)
    rows = gather([run for run in runs if run not in failed], folder)  # nothing old under new settings
    page = write(rows, folder, about={"recipe": chosen.name, "seeds": numbers})
    _print_table(HEADER, [cells(row, equal_kl(rows)) for row in rows])
    print(f"Report: {page}   Table: {folder / 'compare.md'}")
    if failed:
        print(f"Failed: {', '.join(run.name for run in failed)}; each has its .log in {folder}.")
        raise typer.Exit(1)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in header:
        table.add_column(name, no_wrap=name == header[0])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
