"""`keel debug`: a closer look at what ended a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TEXT = 60  # characters of a row's text

debug_app = typer.Typer(name="debug", help="A closer look at what ended a run.", no_args_is_help=True)


@debug_app.callback()
def _group() -> None:
    """A closer look at what ended a run."""


@debug_app.command()
def replay(
    snapshot: Annotated[
        Path, typer.Argument(metavar="RUN/STAGE/faults/step-N", help="What a run saved when it stopped.")
    ],
) -> None:
    """Repeat the loss of a step whose numbers were not finite: whole, and row by row. Nothing in the run changes.

    A row's loss is its part of the minibatch's. First not finite is the first module whose output is not, else the
    loss, else the weight nearest to it whose gradient is not. Looks up what the run's recipe names, so call it from
    where the run was started.

    **Example:** `keel debug replay runs/mine/sft/faults/step-7`
    """
    from keel.build.replay import replay as again
    from keel.cli.console import TerminalConsole, one_line

    fault, batches = again(snapshot)
    with TerminalConsole() as console:
        console.say(str(fault["sentence"]))
        for number, batch in enumerate(batches):
            rows = [["all", f"{batch.whole.loss:.6g}", f"{batch.whole.gradient_norm:.6g}", batch.whole.where, ""]]
            rows += [
                [
                    ", ".join(map(str, part.rows)),
                    f"{part.loss:.6g}",
                    f"{part.gradient_norm:.6g}",
                    part.where,
                    " | ".join(one_line(text, _TEXT) for text in part.texts),
                ]
                for part in batch.parts
            ]
            headings = ["row", "loss", "gradient norm", "first not finite", "text"]
            console.table(f"Micro-batch {number}", headings, rows)
