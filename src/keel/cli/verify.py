"""`keel verify`: every algorithm against an optimum that is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keel.verify.result import Result


def verify(
    quick: Annotated[bool, typer.Option("--quick", help="The shortest proof: under 40 seconds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every check there is.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="These checks alone, * for anything; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where verify.json and report.html go.")] = Path("runs/verify"),
) -> None:
    """Train with every algorithm where the optimum is known exactly, and show that it is reached.

    In worlds small enough to list every response, the distance of a policy from the best one is a number. A check
    that misses its bound makes the command end with 1.

    **Example:** `keel verify --only 'ppo*' --out runs/verify-ppo`
    """
    from keel.errors import UserError

    if quick and full:
        raise UserError("--quick and --full are two lengths of one command; give one of them")
    if only and (quick or full):
        raise UserError(f"--{'quick' if quick else 'full'} has no effect with --only, which names the checks")
    import time

    from keel.verify import registry
    from keel.verify.result import Level
    from keel.verify.run import run_checks, write

    level = Level.QUICK if quick else Level.FULL if full else Level.DEFAULT
    checks = registry.named(only) if only else registry.of_level(level)
    started = time.perf_counter()
    results = run_checks(checks, lambda result: _say(result, len(checks)))
    seconds = time.perf_counter() - started
    page = write(results, out, seconds=seconds)
    _print_tables(results)
    missed = [result for result in results if not result.passed]
    print(f"{len(results) - len(missed)} of {len(results)} checks passed in {seconds:.0f} s. Report: {page}")
    if missed:
        print(f"Missed: {', '.join(result.name for result in missed)}.")
        raise typer.Exit(1)


def _say(result: Result, total: int) -> None:
    """One line as a check ends: a run of minutes should be seen to move."""
    print(f"{'✓' if result.passed else '✕'} {result.name} ({result.seconds:.1f} s)", flush=True)


def _print_tables(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keel.verify.result import Group
    from keel.verify.words import measured

    console = Console(highlight=False)
    for group in Group:
        own = [result for result in results if result.group is group]
        if not own:
            continue
        table = Table(title=group.value, title_justify="left", title_style="bold")
        for name in ("check", "measured", "s", ""):
            table.add_column(name, justify="right" if name == "s" else "left")
        for result in own:
            sign = Text("✓", style="green") if result.passed else Text("✕", style="bold red")
            table.add_row(Text(result.name), Text("\n".join(measured(result))), Text(f"{result.seconds:.1f}"), sign)
        console.print(table)
