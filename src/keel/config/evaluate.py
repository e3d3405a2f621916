"""Judging the policy against its reference."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from keel.config.base import Config, Function
from keel.config.data import LongPrompts, Sources, idle_weights
from keel.config.rewards import Rewards
from keel.config.sampling import RLSamplingConfig


class EvaluateConfig(Config):
    """Held-out prompts, the same for both models."""

    prompts: Sources
    policy: str | None = Field(None, description="the trained model; the ppo stage's unless given")
    reference: str | None = Field(None, description="what it is compared with; the ppo stage's reference unless given")
    reward: Rewards | None = Field(None, description="the judges; ppo's rewards unless given")
    utility: Function | None = Field(None, description="module:function of the true utility, where it is known")
    measures: dict[str, Function] = Field({}, description="further module:function measures, reported as means")
    demonstrations: Sources | None = Field(None, description="held-out answers whose likelihood is compared")
    max_prompt_tokens: int = Field(512, gt=0, description="ppo's unless given")
    long_prompts: LongPrompts = Field(
        "drop", description="a longer prompt is left out, or its oldest tokens are; ppo's unless given"
    )
    sampling: RLSamplingConfig = Field(RLSamplingConfig(), description="each key is ppo's unless given")
    count: int = Field(200, gt=0, description="prompts")
    per_prompt: int = Field(4, gt=0, description="responses a prompt of each model")
    best_of: int = Field(1, gt=0, description="of so many responses of the policy the best by its reward is judged")
    frontier_samples: int = Field(128, gt=1, description="reference samples a prompt for the frontier")
    frontier_prompts: int = Field(64, gt=0)
    bootstrap: int = Field(2000, gt=0, description="resamples for the confidence intervals")

    def contradictions(self) -> Iterator[str]:
        for data in (self.prompts, self.demonstrations):
            yield from idle_weights(data)
