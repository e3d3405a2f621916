"""Supervised fine-tuning."""

from __future__ import annotations

from pydantic import Field

from keel.config.data import DataConfig
from keel.config.training import TrainingConfig


class SFTConfig(TrainingConfig):
    """Learn to answer as the demonstrations do."""

    data: DataConfig
    epochs: int = Field(2, gt=0)
