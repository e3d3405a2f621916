"""How responses are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from keel.config.base import Config


class SamplingConfig(Config):
    """Temperature 0 is greedy; top-k and top-p cut the distribution before the draw."""

    max_new_tokens: int = Field(64, gt=0)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, description="0: all")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="strings that end a response")
    batch: int = Field(128, gt=0, description="sequences drawn side by side; changes memory, not the result")

    @property
    def truncated(self) -> bool:
        """True where the sampled distribution is not the policy's own."""
        return self.top_k > 0 or self.top_p < 1


class RLSamplingConfig(SamplingConfig):
    """Sampling whose log-probabilities are trained on: the full distribution at a temperature above 0."""

    def contradictions(self) -> Iterator[str]:
        if self.temperature == 0:
            yield "temperature 0 has no distribution to learn from; give one above 0"
        if self.truncated:
            yield (
                "top_k/top_p draw from a cut distribution that is not the policy's, so ratio and KL would be biased; "
                "remove them, or lower the temperature instead"
            )
