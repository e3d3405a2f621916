"""What every trained stage shares: the optimiser, its schedule, and how often things are written down."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from keel.config.base import Config
from keel.config.data import LongPrompts

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    skip_faults: int = Field(
        0,
        ge=0,
        description="minibatches of the whole stage that may be left out because their loss or gradient is not finite; "
        "one more ends it",
    )


class TrainingConfig(OptimConfig):
    """A stage that walks over data in epochs."""

    epochs: int = Field(1, gt=0)
    batch: int = Field(
        64, gt=0, description="rows an optimiser step; in `reward` and `direct`, prompts with all their judgements"
    )
    token_budget: int = Field(2048, gt=0, description="padded tokens a micro-batch; changes memory, not the result")
    max_tokens: int = Field(1024, gt=1, description="prompt and response together")
    long_prompts: LongPrompts = Field("drop", description="a longer row is left out, or its prompt's oldest tokens are")
    validate_every: int = Field(50, gt=0, description="optimiser steps between two validations")
    checkpoint_every: int = Field(100, gt=0, description="optimiser steps between two checkpoints")
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest stay on the disk")
