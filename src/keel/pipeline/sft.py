"""Stage 1, supervised fine-tuning: learn to answer as the demonstrations do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keel.batching import row_batches
from keel.config.sft import SFTConfig
from keel.engines.base import Learner
from keel.pipeline.epochs import train_epochs, validation_tally
from keel.records import EncodedRow, Sequences
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally


def train_sft(
    config: SFTConfig,
    learner: Learner[Sequences],
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    *,
    export: Callable[[Path], None],
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Minimise the negative log-likelihood of the responses; publish `model/`. Returns the stage's summary."""

    def validate() -> Tally:
        return validation_tally("sft", learner, row_batches(validation, config.token_budget))

    train_epochs(
        config,
        learner,
        num_rows=len(train),
        batches=lambda rows: row_batches([train[row] for row in rows], config.token_budget),
        validate=validate,
        stage=stage,
        draws=draws,
        console=console,
        shown=("sft/loss", "sft/validation/loss"),
    )
    export(stage.work("model"))
    stage.publish("model")
    return {
        "steps": learner.steps,
        "rows": len(train),
        "response_tokens": sum(row.response_length for row in train),
        "validation_rows": len(validation),
        "validation_loss": validate().means().get("sft/validation/loss"),
    }
