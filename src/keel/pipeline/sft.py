"""Stage 1, supervised fine-tuning: learn to answer as the demonstrations do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keel.batching import text_batches
from keel.config.sft import SFTConfig
from keel.data.mix import Mixture, by_kind
from keel.engines.base import Learner
from keel.pipeline.epochs import train_epochs, validation_tally
from keel.records import EncodedText, Texts
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally


def train_sft(
    config: SFTConfig,
    learner: Learner[Texts],
    train: Sequence[EncodedText],
    validation: Sequence[EncodedText],
    *,
    mixture: Mixture,
    export: Callable[[Path], None],
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Minimise the negative log-likelihood of what trains; publish `model/`. Returns the stage's summary.

    `mixture` says how often each row of `train` is met. Validation meets every row once, and reports by kind too.
    """

    def validate() -> Tally:
        tally = Tally()
        for kind, rows in by_kind(validation).items():
            part = validation_tally("sft", learner, text_batches(rows, config.token_budget))
            tally.merge(part)
            if kind is not None:
                tally.add(f"sft/validation/loss/{kind}", *part.sums["sft/validation/loss"])
        return tally

    train_epochs(
        config,
        learner,
        mixture=mixture,
        batches=lambda rows: text_batches([train[row] for row in rows], config.token_budget),
        tokens=lambda row: [train[row].tokens],
        validate=validate,
        stage=stage,
        draws=draws,
        console=console,
        shown=("sft/loss", "sft/validation/loss"),
    )
    export(stage.work("model"))
    stage.publish("model")
    losses = validate().means()
    return {
        "steps": learner.steps,
        "rows": len(train),
        "response_tokens": sum(row.num_trained for row in train),
        "validation_rows": len(validation),
        "validation_loss": losses.get("sft/validation/loss"),
        "validation_loss_by_kind": {
            kind: losses[f"sft/validation/loss/{kind}"] for kind in by_kind(validation) if kind is not None
        },
    }
