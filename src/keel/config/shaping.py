"""From the rewards' score to what a response is worth, before the leash."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from keel.config.base import Config


class ShapingConfig(Config):
    """In this order: scale, clip, whiten, EOS penalty, length. Each moves the optimum to that of what results."""

    running_scale: bool = Field(False, description="divide by the standard deviation of all scores so far")
    clip: float | None = Field(None, gt=0, description="to [-clip, clip]")
    whiten: bool = Field(False, description="over the rollout: acts as kl.coef times the scores' spread")
    eos_penalty: float = Field(0.0, ge=0, description="taken off the score of a response that never ends")
    length_penalty: float = Field(0.0, ge=0, description="taken off for each token")
    overlong_buffer: int = Field(
        0, ge=0, description="the last so many tokens before the length limit cost up to 1; 0: no such penalty"
    )

    def contradictions(self) -> Iterator[str]:
        if self.running_scale and self.whiten:
            yield "running_scale has no effect beside whiten, which divides by the rollout's spread; give one"
