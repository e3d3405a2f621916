"""The reward model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from keel.config.base import Config
from keel.config.data import Sources
from keel.config.sampling import SamplingConfig
from keel.config.training import TrainingConfig


class EnsembleConfig(Config):
    """Several reward models in place of one, each trained on a bootstrap of its own."""

    members: int = Field(4, ge=2)
    of: Literal["heads", "adapters"] = Field(
        "heads", description="heads on one body, or (with tune: lora) adapters on one base, which differ more"
    )


class RewardConfig(TrainingConfig):
    """Bradley-Terry on comparisons, then centred and scaled on the reference's samples."""

    data: Sources | Literal["collect"] = "collect"
    init: str | None = Field(None, description="model whose body it starts from; the supervised stage's unless given")
    flip_probability: float = Field(0.0, ge=0, lt=0.5, description="known share of labels that are flipped")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    max_pairs: int = Field(
        64, gt=0, description="comparisons of one prompt that are trained on in one step; more of them make more groups"
    )
    ensemble: EnsembleConfig | None = Field(None, description="one reward model unless given")
    head_lr_scale: float = Field(10.0, gt=0, description="the new head's learning rate over the body's")
    normalise_samples: int = Field(512, gt=1, description="reference samples on which the scores get mean 0 and sd 1")
    normalise_sampling: SamplingConfig = Field(
        SamplingConfig(), description="each key is ppo's, where ppo has no sampling collect's, unless given"
    )

    @model_validator(mode="after")
    def _one_noise(self) -> RewardConfig:
        if self.flip_probability and self.label_smoothing:
            raise ValueError("flip_probability models noise, label_smoothing shrinks the scores: give one, not both")
        return self
