"""Sampling by transformers' `generate`: for models whose state Keel's cache cannot keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from keel.config.sampling import SamplingConfig
from keel.dist.crew import each_its_own, enrol, shares, together
from keel.dist.fsdp import gathered
from keel.dist.world import world
from keel.engines.base import DrawKey, Watch
from keel.engines.drawing import choose_tokens, uniform_draws
from keel.engines.responses import StopStrings, encoded, samples_of
from keel.engines.scorers import PolicyScorer
from keel.models.adapters import using
from keel.models.policy import Policy
from keel.records import PromptItem, Samples
from keel.text.render import Renderer

_SCORING_TOKENS = 16_384  # padded tokens a forward, for the log-probabilities


class GenerateSampler:
    """Slower than `CachedSampler`, and the same draws: prompts of one length go together, so no model sees padding.

    Log-probabilities, and the critic's values, come from the policy's own forward on what was drawn.
    """

    def __init__(self, policy: Policy, renderer: Renderer, watch: Watch | None = None) -> None:
        self.policy = policy
        self.renderer = renderer
        self._watch = watch
        self._scorers: dict[float, PolicyScorer] = {}  # by temperature
        enrol(self)

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """As `CachedSampler.sample`; `watch` hears of the steps when all are over."""
        rows, logprobs, values = self._draw(prompts, config, key)
        if self._watch is not None:
            for step in range(max(map(len, rows))):
                drawing = [number for number, row in enumerate(rows) if len(row) > step]
                self._watch(drawing, [rows[number][step] for number in drawing])
        return samples_of(
            self.renderer, prompts, rows, config, logprobs=logprobs, values=values if self.policy.critic else None
        )

    @together
    def _draw(
        self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey
    ) -> tuple[list[list[int]], Tensor | None, Tensor | None]:
        """Each process draws its share of the responses."""
        numbers = shares([len(prompt.tokens) for prompt in prompts])[world().rank]
        with gathered(self.policy):
            parts = each_its_own(lambda: self._draw_here(prompts, numbers, config, key))
        rows = [row for _, row in sorted(one for part in parts for one in part.items())]
        if config.temperature == 0 or config.truncated:
            return rows, None, None
        at = config.temperature
        if at not in self._scorers:
            self._scorers[at] = PolicyScorer(self.policy, temperature=at, token_budget=_SCORING_TOKENS)
        return rows, *self._scorers[at].logprobs_and_values(encoded(prompts, rows))

    def _draw_here(
        self, prompts: Sequence[PromptItem], mine: Sequence[int], config: SamplingConfig, key: DrawKey
    ) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        by_length: dict[int, list[int]] = {}
        for number in mine:
            by_length.setdefault(len(prompts[number].tokens), []).append(number)
        for numbers in by_length.values():
            for start in range(0, len(numbers), config.batch):
                part = numbers[start : start + config.batch]
                uniforms = uniform_draws(key, part, config.max_new_tokens)
                for number, row in zip(part, self._generate(prompts, part, config, uniforms), strict=True):
                    rows[number] = self._ended(prompts[number], row, config.stop)
        return rows

    @torch.no_grad()
    def _generate(
        self, prompts: Sequence[PromptItem], numbers: Sequence[int], config: SamplingConfig, uniforms: Tensor
    ) -> list[list[int]]:
        """Ids of some prompts' responses, as long as the longest; arbitrary behind an end token."""
        model: Any = self.policy.backbone
        tokens = torch.tensor([prompts[number].tokens for number in numbers], device=self.policy.device)
        ends = sorted(self.renderer.eos_ids)
        chooser: Any = _Chooser(config, uniforms.to(self.policy.device))
        plain: Any = GenerationConfig  # untyped
        own, model.generation_config = model.generation_config, plain()  # a hub's would add penalties
        try:
            with using(model, self.policy.adapter):
                output = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    logits_processor=LogitsProcessorList([chooser]),
                    max_new_tokens=config.max_new_tokens,
                    do_sample=False,
                    synced_gpus=False,  # the model is whole here, and processes may do different things
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                )
        finally:
            model.generation_config = own
        rows: list[list[int]] = output[:, tokens.shape[1] :].tolist()
        return rows

    def _ended(self, prompt: PromptItem, row: Sequence[int], stop: Sequence[str]) -> list[int]:
        """The response up to its end token, or to the token that completes a stop string."""
        strings = StopStrings(self.renderer, stop)
        for length in range(1, len(row)):
            if row[length - 1] in self.renderer.eos_ids or (stop and strings.completed(prompt, row[:length])):
                return list(row[:length])
        return list(row)


class _Chooser:
    """Leaves `generate` no token but the one that the uniform numbers [B, T] draw."""

    def __init__(self, config: SamplingConfig, uniforms: Tensor) -> None:
        self._config = config
        self._uniforms = uniforms
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = choose_tokens(scores.clone(), self._config, self._uniforms[:, self._step])
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)
