"""A policy that is a table, and the engines around it: behind the seams of the pipeline it is like any other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.drawing import choose_tokens
from keel.functional.logprobs import logprobs_and_entropy
from keel.models.policy import TokenOutputs
from keel.records import PromptItem, Samples, Scores, Sequences, Targets
from keel.verify.worlds import PROMPT_LENGTH, World


class TabularPolicy(nn.Module):
    """Logits [P, S, V] and a critic [P, S], all free parameters; one forward, as `keel.models.policy.Policy` has it."""

    def __init__(self, world: World, logits: Tensor | None = None, *, critic: bool = False) -> None:
        """Starts at the world's reference unless `logits` are given; the critic starts at 0."""
        super().__init__()
        self.world = world
        self.logits = nn.Parameter((world.ref_logits if logits is None else logits).clone())
        self.critic = nn.Parameter(torch.zeros(self.logits.shape[:2], dtype=self.logits.dtype)) if critic else None

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def forward(
        self,
        sequences: Targets,
        *,
        temperature: float = 1.0,
        logprobs: bool = True,
        entropy: bool = False,
        values: bool = False,
    ) -> TokenOutputs:
        """What is asked for, [B, T] each, 0 outside the mask."""
        mask = sequences.target_mask
        prompts, states, tokens = self._places(sequences)
        log_p = ent = value = None
        if logprobs:
            log_p, ent = logprobs_and_entropy(self.logits[prompts, states], tokens, temperature=temperature)
        if values:
            assert self.critic is not None, "this policy has no critic"
            value = self.critic[prompts, states]
        return TokenOutputs(
            logprobs=None if log_p is None else _scatter(log_p, mask),
            entropy=_scatter(ent, mask) if ent is not None and entropy else None,
            values=None if value is None else _scatter(value, mask),
        )

    def _places(self, sequences: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt, state and token of every counted token, three int64 [tokens]."""
        mask = sequences.target_mask
        tokens = sequences.tokens.gather(1, sequences.target_positions())
        prompts = self.world.prompt_numbers(sequences.tokens)[:, None].expand_as(mask)
        states = torch.zeros_like(tokens)
        for t in range(1, mask.shape[1]):
            states[:, t] = self.world.tree.next_state[states[:, t - 1], tokens[:, t - 1]].clamp(min=0)
        return prompts[mask], states[mask], tokens[mask]


class TableScorer:
    """A tabular policy's view of responses, in the table's own precision (a TokenScorer)."""

    def __init__(self, policy: TabularPolicy, *, temperature: float = 1.0) -> None:
        self.policy = policy
        self.temperature = temperature

    @torch.no_grad()
    def logprobs(self, sequences: Sequences) -> Tensor:
        logprobs = self.policy(sequences, temperature=self.temperature).logprobs
        assert isinstance(logprobs, Tensor)
        return logprobs

    @torch.no_grad()
    def values(self, sequences: Sequences) -> Tensor:
        if self.policy.critic is None:
            return torch.zeros(sequences.response_mask.shape, dtype=self.policy.logits.dtype)
        values = self.policy(sequences, logprobs=False, values=True).values
        assert isinstance(values, Tensor)
        return values

    def logprobs_and_values(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        return self.logprobs(sequences), self.values(sequences)


class TableSampler:
    """Draws responses from a tabular policy, all at once (a Sampler)."""

    def __init__(self, policy: TabularPolicy) -> None:
        self.policy = policy

    @torch.no_grad()
    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """One response a prompt; a round's random numbers are a function of its name and first sample."""
        world, tree = self.policy.world, self.policy.world.tree
        generator = key.draws.generator(key.purpose, iteration=key.iteration, sample=key.first_sample)
        uniforms = torch.from_numpy(generator.random((len(prompts), tree.longest)))
        starts = torch.tensor([prompt.tokens for prompt in prompts])
        numbers = world.prompt_numbers(starts)
        states = torch.zeros(len(prompts), dtype=torch.long)
        said = torch.zeros((len(prompts), tree.longest), dtype=torch.long)
        mask = torch.zeros(said.shape, dtype=torch.bool)
        for t in range(tree.longest):
            mask[:, t] = states >= 0
            drawn = choose_tokens(self.policy.logits[numbers, states.clamp(min=0)], config, uniforms[:, t])
            said[:, t] = drawn.where(mask[:, t], 0)
            states = tree.next_state[states.clamp(min=0), drawn].where(mask[:, t], -1)
        sequences = world_sequences(starts, said, mask)
        last = said.gather(1, mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
        return Samples(
            sequences=sequences,
            logprobs=TableScorer(self.policy, temperature=config.temperature).logprobs(sequences),
            ended=torch.zeros(len(prompts), dtype=torch.bool) if world.eos is None else last == world.eos,
            prompts=tuple(prompts),
            texts=("",) * len(prompts),  # these symbols have no spelling
        )


class RewardTable:
    """The world's reward of each response (a Scorer)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def score(self, samples: Samples) -> Scores:
        sequences, tree = samples.sequences, self.world.tree
        tokens, mask = sequences.response_tokens(), sequences.response_mask
        states = torch.zeros(len(sequences), dtype=torch.long)
        responses = torch.full((len(sequences),), -1)
        for t in range(mask.shape[1]):
            at = states.clamp(min=0)
            responses = torch.where(mask[:, t], tree.response[at, tokens[:, t]], responses)
            states = tree.next_state[at, tokens[:, t]]
        total = self.world.rewards[self.world.prompt_numbers(sequences.tokens), responses]
        return Scores(total=total, parts={"table": total})


def world_sequences(prompts: Tensor, tokens: Tensor, mask: Tensor) -> Sequences:
    """Prompts [B, PROMPT_LENGTH] and responses [B, T] as one batch."""
    return Sequences(
        tokens=torch.cat([prompts, tokens], dim=1),
        prompt_lengths=torch.full((len(prompts),), PROMPT_LENGTH),
        response_mask=mask,
    )


def all_sequences(world: World) -> Sequences:
    """Every prompt with every response, P x N rows: prompt by prompt, in the tree's order."""
    count = len(world.tree.tokens)
    return world_sequences(
        world.prompts.repeat_interleave(count, dim=0),
        world.tree.tokens.repeat(world.num_prompts, 1),
        world.tree.mask.repeat(world.num_prompts, 1),
    )


def prompt_items(world: World) -> list[PromptItem]:
    """The world's prompts as the pipeline takes them."""
    return [
        PromptItem(tokens=tuple(tokens), text=f"prompt {number}", row={}, source=f"prompt {number}")
        for number, tokens in enumerate(world.prompts.tolist())
    ]


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[tokens] back to [B, T], 0 outside the mask."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
