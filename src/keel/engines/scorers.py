"""Scorers: reward models, Python functions, their weighted sum; and a policy's own view of a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from keel.batching import cut_by_tokens, pad_rows, take, take_tokens, to_device
from keel.dist.crew import each_its_own, enrol, shares, together
from keel.dist.fsdp import gathered
from keel.dist.world import world
from keel.engines.base import Scorer
from keel.engines.faults import out_of_memory
from keel.errors import UserError, first_line
from keel.functional.ensembles import combine_scores
from keel.models.ensemble import RewardEnsemble
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from keel.records import EncodedRow, PromptItem, Rollout, Samples, Scores, Sequences
from keel.text.judging import Encoder
from keel.text.render import cut_left
from keel.user_functions import Opinions


class PolicyScorer:
    """Log-probabilities and values of given responses under a policy, without gradient, in token-budget batches."""

    def __init__(self, policy: Policy, *, temperature: float, token_budget: int) -> None:
        self.policy = policy
        self.temperature = temperature
        self.token_budget = token_budget
        enrol(self)

    def logprobs(self, sequences: Sequences) -> Tensor:
        return self._map(sequences, "logprobs")[..., 0]

    def values(self, sequences: Sequences) -> Tensor:
        if self.policy.critic is None:
            return torch.zeros(sequences.response_mask.shape)
        return self._map(sequences, "values")[..., 0]

    def logprobs_and_values(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Both from one forward."""
        if self.policy.critic is None:
            return self.logprobs(sequences), self.values(sequences)
        logprobs, values = self._map(sequences, "logprobs", "values").unbind(dim=-1)
        return logprobs, values

    @together
    @torch.no_grad()
    def _map(self, sequences: Sequences, *asked: str) -> Tensor:
        """[B, T, k] of the k things asked for."""

        def forward(rows: Sequence[int]) -> Tensor:
            part = to_device(take(sequences, rows), self.policy.device)
            wanted = {"logprobs": "logprobs" in asked, "values": "values" in asked}
            output = self.policy(part, temperature=self.temperature, **wanted)
            return torch.stack([getattr(output, name) for name in asked], dim=-1).cpu()

        result = torch.zeros((*sequences.response_mask.shape, len(asked)))
        with gathered(self.policy):
            for rows, part in _by_row_groups(sequences, self, forward):
                result[torch.tensor(rows), : part.shape[1]] = part
        return result


@dataclass(frozen=True)
class Limit:
    """What a reward model can read: longer texts lose the beginning of their prompt, but for its start token."""

    tokens: int
    start_ids: frozenset[int] = frozenset()

    def cut(self, row: EncodedRow, name: str) -> EncodedRow:
        """The row within the limit, its response whole. Raises UserError where the response alone is too long."""
        if len(row.tokens) <= self.tokens:
            return row
        room = self.tokens - row.response_length
        if room < 1:
            raise UserError(
                f"the reward {name} reads at most {self.tokens} tokens, and a response has {row.response_length}; "
                "lower sampling.max_new_tokens, or give a model that reads longer texts"
            )
        prompt = cut_left(row.tokens[: row.prompt_length], room, self.start_ids)
        return EncodedRow((*prompt, *row.tokens[row.prompt_length :]), len(prompt))


class RewardModelScorer:
    """A reward model on responses: it sees the text as `encoder` writes it, or the sampled ids where there is none.

    An ensemble's scores are combined by `combine` and `coef` (see `combine_scores`), and its members' kept.
    Where `limit` cuts a text, the scores say so, and `say` is told once.
    """

    def __init__(
        self,
        name: str,
        model: RewardModel | RewardEnsemble,
        *,
        token_budget: int,
        combine: str = "mean",
        coef: float = 0.0,
        encoder: Encoder | None = None,
        limit: Limit | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name = name
        self.model = model
        self.token_budget = token_budget
        self._combine = combine
        self._coef = coef
        self._encoder = encoder
        self._limit = limit
        self._say = say
        self._said = False
        enrol(self)

    def score(self, samples: Samples) -> Scores:
        if self._encoder is None:
            return self._scores(samples.judged or samples.sequences)
        return self.score_texts(samples.prompts, samples.texts, samples.ended.tolist())

    def score_texts(self, prompts: Sequence[PromptItem], texts: Sequence[str], ended: Sequence[bool]) -> Scores:
        """Of responses as the model's encoder writes them, each ended or cut off."""
        assert self._encoder is not None, "this reward model reads sampled ids"
        encode = self._encoder.encode
        said = zip(prompts, texts, ended, strict=True)
        return self._scores(pad_rows([encode(prompt.source, text, ended=whole) for prompt, text, whole in said]))

    def has_room(self, prompt: PromptItem, response: str, *, whole: bool = False) -> bool:
        """Whether a response is short enough to be read, with a token of its prompt at least; `whole`: with all."""
        assert self._encoder is not None, "this reward model reads sampled ids"
        if self._limit is None:
            return True
        row = self._encoder.encode(prompt.source, response)
        return len(row.tokens) <= self._limit.tokens if whole else row.response_length < self._limit.tokens

    def _scores(self, sequences: Sequences) -> Scores:
        sequences, cut = self._within_limit(sequences)
        members = self._map(sequences)
        total = combine_scores(members, self._combine, coef=self._coef)
        several = {self.name: members} if members.shape[1] > 1 else {}
        return Scores(total=total, parts={self.name: total}, cut={self.name: cut}, members=several)

    def score_rows(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Scores [len(rows)] of texts that are already token ids."""
        return combine_scores(self._map(pad_rows(rows)), self._combine, coef=self._coef)

    @together
    @torch.no_grad()
    def _map(self, sequences: Sequences) -> Tensor:
        """Scores [B, k] of an ensemble's members, [B, 1] of one model."""

        def forward(rows: Sequence[int]) -> Tensor:
            scores: Tensor = self.model(to_device(take(sequences, rows), self.model.device))
            return scores.cpu()

        with gathered(self.model):
            found = list(_by_row_groups(sequences, self, forward))
        order = torch.tensor([row for rows, _ in found for row in rows])
        return torch.cat([part for _, part in found]).reshape(len(order), -1)[order.argsort()]

    def _within_limit(self, sequences: Sequences) -> tuple[Sequences, Tensor]:
        """The texts cut to the limit, and which of them were, bool [B]."""
        lengths = sequences.lengths
        if self._limit is None or int(lengths.max()) <= self._limit.tokens:
            return sequences, torch.zeros(len(sequences), dtype=torch.bool)
        if not self._said:
            self._say(
                f"warning: the reward {self.name} reads at most {self._limit.tokens} tokens; longer texts "
                f"({int(lengths.max())} here) lose the beginning of their prompt (reward/{self.name}/cut counts them)."
            )
            self._said = True
        rows = [
            EncodedRow(tuple(tokens[:length]), prompt)
            for tokens, length, prompt in zip(
                sequences.tokens.tolist(), lengths.tolist(), sequences.prompt_lengths.tolist(), strict=True
            )
        ]
        return pad_rows([self._limit.cut(row, self.name) for row in rows]), (lengths > self._limit.tokens).cpu()


class FunctionScorer:
    """A Python function on texts; `say` is told once where it has no opinion on any of them."""

    def __init__(self, name: str, function: Opinions, say: Callable[[str], None] = lambda text: None) -> None:
        self.name = name
        self.function = function
        self._say = say
        self._said = False

    def score(self, samples: Samples) -> Scores:
        values = self.function(
            prompt_texts(samples.prompts), list(samples.texts), [dict(p.row) for p in samples.prompts]
        )
        opinions = torch.tensor([float("nan") if value is None else value for value in values])
        if opinions.isnan().all() and not self._said:
            self._say(f"warning: the function {self.name} has no opinion on any of {len(values)} responses.")
            self._said = True
        return Scores(total=opinions.masked_fill(opinions.isnan(), 0.0), parts={self.name: opinions})


class WeightedScorer:
    """The weighted sum of several scorers; a response on which one has no opinion gets 0 from it."""

    def __init__(self, scorers: Sequence[tuple[Scorer, float]]) -> None:
        self.scorers = tuple(scorers)

    def score(self, samples: Samples) -> Scores:
        total = torch.zeros(len(samples.texts))
        parts: dict[str, Tensor] = {}
        cut: dict[str, Tensor] = {}
        members: dict[str, Tensor] = {}
        for scorer, weight in self.scorers:
            scores = scorer.score(samples)
            total = total + weight * scores.total
            parts |= scores.parts
            cut |= scores.cut
            members |= scores.members
        return Scores(total=total, parts=parts, cut=cut, members=members)


class _Budgeted(Protocol):
    token_budget: int  # padded tokens a forward


def _by_row_groups(
    sequences: Sequences, scorer: _Budgeted, forward: Callable[[Sequence[int]], Tensor]
) -> list[tuple[list[int], Tensor]]:
    """`forward` of all rows, in groups within the scorer's budget; each process takes its share of the rows.

    Where memory runs out the budget becomes half of what was too much. Raises UserError where one row is.
    """
    lengths = sequences.lengths.tolist()

    def groups_of(rows: Sequence[int]) -> list[list[int]]:
        groups = cut_by_tokens([lengths[row] for row in rows], scorer.token_budget)
        return [[rows[index] for index in group] for group in groups]

    def mine() -> list[tuple[list[int], Tensor]]:
        found: list[tuple[list[int], Tensor]] = []
        waiting = groups_of(shares(lengths)[world().rank])
        while waiting:
            group = waiting[0]
            try:
                found.append((group, forward(group)))
                del waiting[0]
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(group) == 1:
                    raise UserError(
                        f"out of memory while one text of {lengths[group[0]]} tokens was scored "
                        f"({first_line(error)}); lower max_new_tokens or the length of prompts, or take a smaller model"
                    ) from error
            scorer.token_budget = len(group) * max(lengths[row] for row in group) // 2
            waiting = groups_of([row for rows in waiting for row in rows])
        return found

    return [one for part in each_its_own(mine) for one in part]


def prompt_texts(prompts: Sequence[PromptItem]) -> list[str]:
    """The prompts as people read them."""
    return [prompt.text for prompt in prompts]


@torch.no_grad()
def explain_ratio(policy: Policy, rollout: Rollout, *, temperature: float, tolerance: float) -> str:
    """Which known cause makes the learner's log-probabilities differ from the sampler's: each is tried alone.

    `tolerance` is that of the largest |ratio - 1|, or where the sampler computes otherwise than the learner, of the
    root mean square of log ratios.
    """
    sequences, device = rollout.sequences, policy.device
    rough = rollout.sampler_logprobs is not None
    sampled = rollout.logprobs if rollout.sampler_logprobs is None else rollout.sampler_logprobs

    def gap(rows: Sequence[Sequence[int]], at: float) -> float:
        parts = []
        for part in rows:
            logprobs = policy(to_device(take(sequences, part), device), temperature=at).logprobs.cpu()
            mask = take_tokens(sequences.response_mask, sequences, part)
            parts.append((logprobs - take_tokens(sampled, sequences, part))[mask].nan_to_num(torch.inf))
        log_ratios = torch.cat(parts)
        return float(log_ratios.square().mean().sqrt() if rough else (log_ratios.exp() - 1).abs().max())

    everything = [list(range(len(sequences)))]
    training = [module for module in policy.modules() if module.training]
    for module in training:
        module.training = False
    without_dropout = gap(everything, temperature)
    for module in training:
        module.training = True
    if training and without_dropout <= tolerance:
        return "Cause: dropout is on while training; call eval() on the model, or set its dropout to 0."
    if gap([[row] for row in range(len(sequences))], temperature) <= tolerance:
        return (
            "Cause: padding or positions: without padding the two agree; the model's positions depend on its padding."
        )
    if temperature != 1.0 and gap(everything, 1.0) <= tolerance:
        return "Cause: temperature: they agree at temperature 1, so the sampler did not apply the configured one."
    if not rough and next(policy.parameters()).dtype != torch.float32:
        return "Cause: precision: the policy does not compute in float32."
    return (
        "No cause that could be tried alone explains it; look for truncated sampling (top_k, top_p, a logits "
        "processor) or a sampler that holds other weights."
    )
