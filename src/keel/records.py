"""What flows in memory between the parts of a stage: frozen, with a shape on every field.

Shapes: B rows, L the longest prompt + response of the batch, T its longest response. Everything per token of
a response is [B, T] with index 0 = the first response token; rows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from keel.schema import Dialogue


@dataclass(frozen=True)
class PromptItem:
    """A prompt ready for a model: its token ids, its text, and its row's other columns."""

    tokens: tuple[int, ...]
    text: str
    row: Mapping[str, Any]
    source: Dialogue  # the prompt as it was read, for a model with another tokenizer
    kind: str | None = None  # what its source calls it
    space: str = ""  # at the prompt's end; it is no part of `tokens`, for it belongs to the response's first word


@dataclass(frozen=True)
class EncodedRow:
    """One prompt and response as token ids; `prompt_length` tokens of it are the prompt."""

    tokens: tuple[int, ...]
    prompt_length: int

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class EncodedText:
    """A text as token ids of which some train: one response, or every turn of an assistant."""

    tokens: tuple[int, ...]
    trains: tuple[bool, ...]  # as many; the first is False, for nothing predicts it
    kind: str | None = None  # what its source calls it

    @property
    def num_trained(self) -> int:
        return sum(self.trains)


class Targets(Protocol):
    """A padded batch some of whose tokens, [B, T], are predicted, each from the state before it."""

    @property
    def tokens(self) -> Tensor:
        """int64 [B, L]"""
        ...

    @property
    def lengths(self) -> Tensor:
        """int64 [B], real tokens; what follows them is padding."""
        ...

    @property
    def target_mask(self) -> Tensor:
        """bool [B, T]"""
        ...

    def target_positions(self) -> Tensor:
        """int64 [B, T]: where in `tokens` each target stands (arbitrary where the mask is False)."""
        ...


@dataclass(frozen=True)
class Texts:
    """A padded batch of texts of which some tokens train; here T = L."""

    tokens: Tensor  # int64 [B, L], padded on the right with an arbitrary id
    trained: Tensor  # bool [B, L]
    lengths: Tensor  # int64 [B]

    @property
    def weight(self) -> float:
        """Trained tokens: the batch's share of a token mean."""
        return float(self.trained.sum())

    @property
    def target_mask(self) -> Tensor:
        return self.trained

    def target_positions(self) -> Tensor:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)


@dataclass(frozen=True)
class Sequences:
    """A padded batch of prompts with their responses."""

    tokens: Tensor  # int64 [B, L], padded on the right with an arbitrary id
    prompt_lengths: Tensor  # int64 [B], at least 1
    response_mask: Tensor  # bool [B, T], True = response token (its end token included)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def response_lengths(self) -> Tensor:
        """int64 [B]"""
        return self.response_mask.sum(dim=1)

    @property
    def lengths(self) -> Tensor:
        """Prompt and response together, int64 [B]."""
        return self.prompt_lengths + self.response_lengths

    @property
    def weight(self) -> float:
        """Response tokens: the batch's share of a token mean."""
        return float(self.response_mask.sum())

    @property
    def target_mask(self) -> Tensor:
        return self.response_mask

    def target_positions(self) -> Tensor:
        return self.response_positions()

    def response_positions(self) -> Tensor:
        """int64 [B, T]: where in `tokens` each response token stands (clamped where the mask is False)."""
        steps = torch.arange(self.response_mask.shape[1], device=self.tokens.device)
        return (self.prompt_lengths[:, None] + steps).clamp(max=self.tokens.shape[1] - 1)

    def response_tokens(self) -> Tensor:
        """int64 [B, T]; arbitrary where the mask is False."""
        return self.tokens.gather(1, self.response_positions())


@dataclass(frozen=True)
class Pairs:
    """A micro-batch of N comparisons between B responses; each response is there once, however often it is compared."""

    rows: Sequences  # B rows
    chosen: Tensor  # int64 [N], which row was preferred
    rejected: Tensor  # int64 [N], to which row
    margins: Tensor  # float [N]
    weights: Tensor  # float [N]
    drawn: Tensor | None = None  # float [N, k], how often each member of an ensemble has it in its own sample

    @property
    def weight(self) -> float:
        return float(self.weights.sum())


@dataclass(frozen=True)
class Choices:
    """As `Pairs`, for a policy that learns from them: with what its reference makes of each response."""

    rows: Sequences  # B rows
    ref_logprobs: Tensor  # float [B], of the whole response; 0 where a method has no reference
    chosen: Tensor  # int64 [N], which row was preferred
    rejected: Tensor  # int64 [N], to which row
    weights: Tensor  # float [N]

    @property
    def weight(self) -> float:
        return float(self.weights.sum())


@dataclass(frozen=True)
class Labels:
    """A micro-batch of N labels of B responses, each accepted or not."""

    rows: Sequences  # B rows
    ref_logprobs: Tensor  # float [B], of the whole response
    judged: Tensor  # int64 [N], which row
    desirable: Tensor  # bool [N]
    weights: Tensor  # float [N]
    reference_point: Tensor  # float, a scalar: that of the whole minibatch

    @property
    def weight(self) -> float:
        return float(self.weights.sum())


@dataclass(frozen=True)
class Rankings:
    """A micro-batch of N rankings of at most K of its B responses; each response is there once."""

    rows: Sequences  # B rows
    items: Tensor  # int64 [N, K], which rows are ranked; arbitrary where the mask is False
    ranks: Tensor  # int64 [N, K], lower is better
    mask: Tensor  # bool [N, K]
    pairs: Tensor  # int64 [M, 2], each two rows that a ranking tells apart, the better one first

    @property
    def weight(self) -> float:
        """Rankings."""
        return float(len(self.items))


@dataclass(frozen=True)
class Ratings:
    """A micro-batch of N ratings of its B responses; each response is there once, however often it is rated."""

    rows: Sequences  # B rows
    items: Tensor  # int64 [N], which row was rated
    levels: Tensor  # int64 [N], from 0
    annotators: Tensor  # int64 [N], by whom; -1 = by nobody who is known
    pairs: Tensor  # int64 [M, 2], each two rows of a prompt that an annotator rated unequally, the better one first

    @property
    def weight(self) -> float:
        """Ratings."""
        return float(len(self.items))


@dataclass(frozen=True)
class CutPoints:
    """Where the scale of the scores is cut into levels, and how lenient each annotator is."""

    cuts: Tensor  # float [M], increasing, between M + 1 levels
    offsets: Tensor  # float [A + 1], added to the score; the last is 0, for whoever is not known


@dataclass(frozen=True)
class Samples:
    """Responses drawn from a policy."""

    sequences: Sequences
    logprobs: Tensor | None  # float [B, T] of the sampled tokens at the sampling temperature; None if truncated
    ended: Tensor  # bool [B], False = cut at the length limit
    prompts: tuple[PromptItem, ...]
    texts: tuple[str, ...]  # the responses, without special tokens, and without the stop string that ended one
    judged: Sequences | None = None  # what a reward model reads where stop strings are used; None: `sequences`
    values: Tensor | None = None  # float [B, T] of the critic, where it is a head on the states that were drawn from
    lag: int = 0  # updates that the policy has taken since it drew them


@dataclass(frozen=True)
class Scores:
    """What the rewards say of each response."""

    total: Tensor  # float [B], the weighted sum
    parts: Mapping[str, Tensor]  # float [B] each, unweighted; NaN = no opinion
    cut: Mapping[str, Tensor] = field(default_factory=dict)  # bool [B] each, by reward model: its prompt was cut
    members: Mapping[str, Tensor] = field(default_factory=dict)  # float [B, k], by ensemble: what each member says


@dataclass(frozen=True)
class Rollout:
    """Everything one PPO iteration learns from; made once by `collect_rollout`, never changed."""

    samples: Samples
    logprobs: Tensor  # float [B, T] under the policy that the update begins with: that which sampled, unless they lag
    ref_logprobs: Tensor  # float [B, T]
    values: Tensor  # float [B, T]
    scores: Scores
    group: Tensor  # int64 [B], equal for responses to the same prompt
    policy_version: int  # the iteration whose weights sampled
    sampler_logprobs: Tensor | None = None  # float [B, T], where the sampler computes otherwise than the learner
    seconds: Mapping[str, float] = field(default_factory=dict)  # that each role took, by the metric's name

    @property
    def sequences(self) -> Sequences:
        return self.samples.sequences

    @property
    def response_mask(self) -> Tensor:
        return self.samples.sequences.response_mask

    @property
    def drawn_logprobs(self) -> Tensor:
        """float [B, T] under the policy that sampled; of one that has gone on, only the sampler knows them."""
        if not self.samples.lag:
            return self.logprobs
        assert self.sampler_logprobs is not None, "what was drawn ahead comes from another sampler than the learner's"
        return self.sampler_logprobs


@dataclass(frozen=True)
class Leash:
    """The KL to the reference as a term of the loss."""

    coef: float
    ref_logprobs: Tensor  # float [B, T]
    baseline: Tensor  # float [B], the mean KL of the response's neighbours: takes off variance


@dataclass(frozen=True)
class Credit:
    """What a rollout teaches."""

    advantages: Tensor  # float [B, T]
    returns: Tensor  # float [B, T], the critic's targets
    leash: Leash | None = None  # None: the KL is paid in the reward
    pairs: Tensor | None = None  # int64 [N, 2], the rows of a preferred response and of the other; None: no pairs


@dataclass(frozen=True)
class PolicyBatch:
    """The part of a rollout that one micro-batch of the policy update sees."""

    sequences: Sequences
    old_logprobs: Tensor  # float [B, T]
    old_values: Tensor  # float [B, T]
    advantages: Tensor  # float [B, T]
    returns: Tensor  # float [B, T]
    importance: Tensor | None = None  # float [B, T] pi_old / pi_sampler, capped; None: they are the same
    leash: Leash | None = None  # None: the KL is no term of the loss
    paired: bool = False  # each two rows are a pair, the preferred one first

    @property
    def weight(self) -> float:
        return self.sequences.weight
