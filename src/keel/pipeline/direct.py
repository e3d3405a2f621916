"""The direct stage: the policy learns from preferences themselves, without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from keel.config.direct import DirectConfig
from keel.data.mix import by_kind
from keel.engines.base import Learner, Weighted
from keel.pipeline.epochs import train_epochs, validation_tally
from keel.pipeline.judgements import J, by_prompt, mixture_of
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally

B = TypeVar("B", bound=Weighted)


@dataclass(frozen=True)
class DirectEngines(Generic[J, B]):
    """What does the work of this stage."""

    learner: Learner[B]
    batches: Callable[[Sequence[Sequence[J]]], list[B]]  # a minibatch of groups as micro-batches
    export: Callable[[Path], None]


def train_direct(
    config: DirectConfig,
    engines: DirectEngines[J, B],
    train: Sequence[J],
    validation: Sequence[J],
    *,
    weights: Sequence[float],
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Minimise the loss of `config.kind`; publish `model/`. Returns the stage's summary.

    `weights` are those of the sources that the preferences are of. Validation meets each once, and reports by kind
    too.
    """

    def validate() -> Tally:
        tally = Tally()
        for kind, part in by_kind(validation).items():
            found = validation_tally("direct", engines.learner, engines.batches(by_prompt(part, config.max_pairs)))
            tally.merge(found)
            if kind is not None:
                tally.add(f"direct/validation/accuracy/{kind}", *found.sums["direct/validation/accuracy"])
        return tally

    groups = by_prompt(train, config.max_pairs)
    train_epochs(
        config,
        engines.learner,
        mixture=mixture_of(groups, weights),
        batches=lambda rows: engines.batches([groups[row] for row in rows]),
        tokens=lambda row: (text.tokens for judged in groups[row] for text in judged.rows),
        validate=validate,
        stage=stage,
        draws=draws,
        console=console,
        shown=("direct/loss", "direct/accuracy", "direct/validation/accuracy"),
    )
    engines.export(stage.work("model"))
    stage.publish("model")
    return {
        "steps": engines.learner.steps,
        "rows": len(train),
        "prompts": len(groups),
        "validation_rows": len(validation),
        "validation": {name.removeprefix("direct/validation/"): value for name, value in validate().means().items()},
    }
