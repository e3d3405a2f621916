"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Out = Annotated[Path | None, typer.Option(help="The run's directory; runs/NAME of the recipe unless given.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be repeated.")
]
Reuse = Annotated[Path | None, typer.Option(help="Link every finished stage of this run that is unchanged.")]
Fork = Annotated[
    str | None,
    typer.Option(
        metavar="OLD/STAGE[@STEP]",
        help="Start this stage from a checkpoint of another run, with this recipe's settings.",
    ),
]
Smoke = Annotated[
    bool,
    typer.Option("--smoke", help="Two steps of every stage, then peak memory and the time to expect; nothing is kept."),
]
Processes = Annotated[
    int, typer.Option(min=1, help="Share the work among this many processes of this machine, as under torchrun.")
]
Restarts = Annotated[
    int,
    typer.Option(min=0, help="How often the processes are started again, from the last checkpoint, when one dies."),
]
Extend = Annotated[
    bool, typer.Option("--extend", help="Go on with a stage whose iterations or epochs alone were raised.")
]
FreshFrom = Annotated[
    str | None, typer.Option(metavar="STAGE", help="Set this stage and all later ones aside and make them anew.")
]
