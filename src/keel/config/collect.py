"""Collecting comparisons from a policy's own responses."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from keel.config.base import Config, Function, without_effect
from keel.config.data import LongPrompts, Sources
from keel.config.sampling import SamplingConfig


class AnnotatorConfig(Config):
    """Who compares: a utility function with Bradley-Terry noise (`script`), or an annotator of your own (`factory`)."""

    script: Function | None = Field(None, description="module:function giving each response's utility")
    factory: Function | None = Field(None, description="module:function returning a keel.Annotator")
    temperature: float = Field(0.0, ge=0, description="noise: P(first wins) = sigmoid(utility gap / temperature)")
    name: str = "scripted"

    def contradictions(self) -> Iterator[str]:
        if (self.script is None) == (self.factory is None):
            yield "an annotator is either `script:` (a utility) or `factory:` (one of your own)"
        if self.factory is not None:
            yield from without_effect(self, "temperature", because="with a factory, whose annotator has its own noise")
            if self.name == "scripted":
                yield "an annotator of your own needs a `name:`, which each comparison carries"


class CollectConfig(Config):
    """Sample, show in pairs, write down which one is preferred."""

    prompts: Sources
    annotator: AnnotatorConfig
    per_prompt: int = Field(2, ge=2, description="responses a prompt; every pair of them is compared")
    policy: str | None = Field(None, description="model that responds; the supervised stage's unless given")
    max_prompt_tokens: int = Field(512, gt=0)
    long_prompts: LongPrompts = Field("drop", description="a longer prompt is left out, or its oldest tokens are")
    sampling: SamplingConfig = SamplingConfig()
