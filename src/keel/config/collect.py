"""Collecting comparisons from a policy's own responses."""

from __future__ import annotations

from pydantic import Field

from keel.config.base import Config
from keel.config.data import DataConfig
from keel.config.sampling import SamplingConfig


class AnnotatorConfig(Config):
    """A scripted annotator: a utility function, compared with Bradley-Terry noise."""

    script: str = Field(description="module:function giving each response's utility")
    temperature: float = Field(0.0, ge=0, description="noise: P(first wins) = sigmoid(utility gap / temperature)")
    name: str = "scripted"


class CollectConfig(Config):
    """Sample, show in pairs, write down which one is preferred."""

    prompts: DataConfig
    annotator: AnnotatorConfig
    per_prompt: int = Field(2, ge=2, description="responses a prompt; every pair of them is compared")
    policy: str | None = Field(None, description="model that responds; the supervised stage's unless given")
    max_prompt_tokens: int = Field(512, gt=0, description="longer prompts are left out")
    sampling: SamplingConfig = SamplingConfig()
