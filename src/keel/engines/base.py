"""The seams between a stage and what does its work: small protocols, each with more than one implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.records import PromptItem, Samples, Scores, Sequences
from keel.seeds import Draws
from keel.tally import Tally


@dataclass(frozen=True)
class DrawKey:
    """Names the random numbers of one round of sampling: the same key draws the same responses."""

    draws: Draws
    purpose: str
    iteration: int
    first_sample: int = 0  # global index of the round's first response


Watch = Callable[[Sequence[int], Sequence[int]], None]  # responses that got a token in a step, and the tokens


class Sampler(Protocol):
    """Draws one response a prompt."""

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """len(prompts) responses, in their order."""
        ...


class Ahead(Protocol):
    """Draws the next batch while this one trains."""

    def begin(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey, version: int) -> None:
        """What `sample` will be asked, from now on, under the weights of now: those of iteration `version`."""
        ...

    def kept(self) -> dict[str, Any] | None:
        """What was begun, once it is there, as plain JSON; None without it or where it failed, as `sample` will say."""
        ...

    def restore(self, kept: Mapping[str, Any]) -> None:
        """As if it had been begun here."""
        ...


class TokenScorer(Protocol):
    """A frozen look at a policy: what it thinks of given responses."""

    def logprobs(self, sequences: Sequences) -> Tensor:
        """float [B, T] at the sampling temperature, zero outside the mask."""
        ...

    def values(self, sequences: Sequences) -> Tensor:
        """float [B, T] of its critic, zero outside the mask, and everywhere without one."""
        ...

    def logprobs_and_values(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Both at once."""
        ...


class Scorer(Protocol):
    """Says how good responses are."""

    def score(self, samples: Samples) -> Scores:
        """One score a response."""
        ...


class Weighted(Protocol):
    """A micro-batch that knows its share of the loss's denominator (tokens, or weighted pairs)."""

    @property
    def weight(self) -> float: ...


B_contra = TypeVar("B_contra", bound=Weighted, contravariant=True)


class Learner(Protocol[B_contra]):
    """Owns weights, optimiser and schedule; one kind of loss."""

    @property
    def steps(self) -> int:
        """Optimiser steps taken so far."""
        ...

    def step(self, batches: Sequence[B_contra], check: Callable[[Tally], None] | None = None) -> Tally:
        """One optimiser step on a minibatch, given as micro-batches.

        `check` sees the minibatch's statistics before the weights move, and may raise.
        """
        ...

    def measure(self, batches: Sequence[B_contra]) -> Tally:
        """The loss's statistics without learning."""
        ...

    def write(self, folder: Path) -> None:
        """Weights and optimiser state as files in a checkpoint's folder."""
        ...

    def read(self, folder: Path, steps: int) -> None:
        """Go back to what `write` left in that folder after `steps` steps."""
        ...
