"""The seams between a stage and what does its work: small protocols, each with more than one implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.errors import UserError
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


@dataclass(frozen=True)
class Suspect:
    """Rows that stay together, looked at without the others of their micro-batch: loss or gradient is not finite."""

    batch: int  # which of the fault's micro-batches
    rows: tuple[int, ...]  # in it
    tokens: tuple[tuple[int, ...], ...]  # of each row
    texts: tuple[str, ...]
    loss: float
    gradient_norm: float
    where: str  # what was the first to be not finite, if anything was
    numbers: Mapping[str, float]  # the loss's statistics, and of each field what is furthest from 0, or not finite


class LogitsNotFinite(UserError):
    """A policy from which no token can be drawn."""


class NumericalFault(UserError):
    """A loss or a gradient that is not finite, met before the weights moved."""

    def __init__(
        self,
        sentence: str,
        *,
        problem: str,
        batches: Sequence[Any],
        denominator: float,
        suspects: Sequence[Suspect] = (),
        weights: Sequence[str] = (),
    ) -> None:
        super().__init__(sentence)
        self.problem = problem  # what is not finite
        self.batches = tuple(batches)  # the micro-batches at fault
        self.denominator = denominator  # of the whole minibatch
        self.suspects = tuple(suspects)  # empty where each row alone is finite
        self.weights = tuple(weights)  # names of those that are not finite themselves


B_contra = TypeVar("B_contra", bound=Weighted, contravariant=True)


class Learner(Protocol[B_contra]):
    """Owns weights, optimiser and schedule; one kind of loss."""

    @property
    def steps(self) -> int:
        """Optimiser steps taken so far."""
        ...

    def step(self, batches: Sequence[B_contra], check: Callable[[Tally], None] | None = None) -> Tally:
        """One optimiser step on a minibatch, given as micro-batches.

        `check` sees the minibatch's statistics before the weights move, and may raise. Raises NumericalFault before
        they move if the loss or the gradient is not finite.
        """
        ...

    def skip(self) -> None:
        """Leave a minibatch out: the weights stay, the schedule goes on as if a step had been taken."""
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
