"""What was seen of a model and of a source of data. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A causal language model as its configuration and tokenizer describe it."""

    name: str  # a directory or a hub name
    family: str
    parameters: int
    context: int | None  # longest text in tokens; None where the configuration states no limit
    vocabulary: int
    own_template: bool  # whether its tokenizer brings a chat template


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A source of rows; the lengths are those of a sample of its usable rows, in the model's tokens."""

    name: str
    kind: str  # prompts, demonstrations, comparisons
    total: int  # records
    usable: int
    unusable: int  # for a fault; records may also be left out on purpose
    chat: bool  # whether prompts are messages
    gives_prompts: bool  # whether the same rows can be read as prompts
    validation: float  # share to hold out, so that enough prompts are
    held_out: int  # prompts that this share holds out
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]  # empty for prompts
    row_lengths: tuple[int, ...]  # prompt and longest response

    @property
    def unusable_share(self) -> float:
        return self.unusable / self.total


def percentile(lengths: Sequence[int], share: float) -> int:
    """The smallest length that at least `share` of them (above 0, at most 1) do not pass."""
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1]


def share_beyond(lengths: Sequence[int], limit: int) -> float:
    """Which share of the lengths passes the limit."""
    return sum(length > limit for length in lengths) / len(lengths)
