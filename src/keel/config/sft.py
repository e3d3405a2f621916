"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from keel.config.data import Sources
from keel.config.training import TrainingConfig


class SFTConfig(TrainingConfig):
    """Learn to answer as the demonstrations do."""

    data: Sources
    epochs: int = Field(2, gt=0)
    train_on: Literal["last", "all"] = Field("last", description="which of the assistant's turns of a dialogue train")
