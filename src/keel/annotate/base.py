"""The protocol of annotators: given pairs of responses, say which of each is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, in the order in which they are shown."""

    prompt: str
    first: str
    second: str
    row: Mapping[str, Any]
    """The prompt's row of the data set, with its other columns."""


@dataclass(frozen=True)
class Judgement:
    """An annotator's answer to one pair."""

    first_wins: bool
    margin: float | None = None
    """Utility of the first response minus that of the second, in the annotator's units, where it is known."""
    probability: float | None = None
    """That the annotator prefers the first, where it is known."""


class Annotator(Protocol):
    """Anything that judges pairs."""

    def compare(self, pairs: Sequence[Pair], uniforms: Sequence[float]) -> list[Judgement]:
        """One judgement a pair, in order; `uniforms`, one a pair in [0, 1), decide what is left to chance."""
        ...


def noise_ceiling(probabilities: Sequence[float]) -> float:
    """The best accuracy attainable against labels drawn with these probabilities: the mean of max(p, 1 - p).

    Raises ValueError if there is none.
    """
    if not probabilities:
        raise ValueError("noise_ceiling needs at least one probability, got none")
    return sum(max(p, 1 - p) for p in probabilities) / len(probabilities)
