"""Sampling in process: with a key-value cache of Keel's own, or by transformers' `generate` where that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.dist.crew import each_its_own, enrol, shares, together
from keel.dist.fsdp import gathered
from keel.dist.world import world
from keel.engines.base import DrawKey, Sampler, Watch
from keel.engines.cache import why_not
from keel.engines.drawing import uniform_draws
from keel.engines.generate import GenerateSampler
from keel.engines.live import Drawn, LiveRows
from keel.engines.responses import StopStrings, samples_of
from keel.models.kernels import packed_weights, release_freed_buffers
from keel.models.policy import Policy, vocabulary_size
from keel.records import PromptItem, Samples
from keel.text.render import Renderer


def make_sampler(
    policy: Policy,
    renderer: Renderer,
    *,
    say: Callable[[str], None] = lambda sentence: None,
    watch: Watch | None = None,
) -> Sampler:
    """The sampler that fits the model; `say` is told where it is the slow one.

    `watch` hears after each step which responses got a token, and the tokens.
    """
    with gathered(policy):
        reason = why_not(policy)
    if reason is None:
        return CachedSampler(policy, renderer, watch)
    say(
        f"note: {type(policy.backbone).__name__} is sampled by transformers' generate, which is slower: Keel's cache "
        f"does not fit it ({reason})."
    )
    return GenerateSampler(policy, renderer, watch)


class CachedSampler:
    """Draws from a policy over a cache of its own, with finished responses out of the way at once.

    One uniform number a response and position decides a token by the inverse of the cumulative distribution,
    so a response depends on its own draws, not on its batch (but for the rounding of a larger matrix product).
    A response ends with an end token, or with the token that completes a stop string in its text.
    """

    def __init__(self, policy: Policy, renderer: Renderer, watch: Watch | None = None) -> None:
        self.policy = policy
        self.renderer = renderer
        self._watch = watch
        enrol(self)

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """One response a prompt; `logprobs` are those of the full distribution at the temperature, or None if cut."""
        drawn = self._draw(prompts, config, key)
        ids = [row[:length] for row, length in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)]
        return samples_of(self.renderer, prompts, ids, config, logprobs=drawn.logprobs, values=drawn.values)

    @together
    def _draw(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Drawn:
        """Each process draws its share of the responses."""
        taken = shares([len(prompt.tokens) + config.max_new_tokens for prompt in prompts])
        with gathered(self.policy):
            parts = each_its_own(lambda: self._draw_here(prompts, taken[world().rank], config, key))
        release_freed_buffers()  # of many shapes, between which the update's would not fit
        return Drawn.joined(taken, parts)

    def _draw_here(
        self, prompts: Sequence[PromptItem], numbers: Sequence[int], config: SamplingConfig, key: DrawKey
    ) -> Drawn | None:
        if not numbers:
            return None
        strings = StopStrings(self.renderer, config.stop)
        rows = LiveRows(
            self.policy,
            [prompts[number].tokens for number in numbers],
            config,
            uniform_draws(key, numbers, config.max_new_tokens),
            _end_table(self.policy, self.renderer),
            watch=self._watch,
            stops=(lambda n, ids: strings.completed(prompts[numbers[n]], ids)) if config.stop else None,
        )
        with torch.no_grad(), packed_weights(self.policy.backbone):
            return rows.run()


def _end_table(policy: Policy, renderer: Renderer) -> Tensor:
    """Which ids end a response, bool [V]."""
    size = max(vocabulary_size(policy.backbone), *(token + 1 for token in renderer.eos_ids))
    ends = torch.zeros(size, dtype=torch.bool)
    ends[list(renderer.eos_ids)] = True
    return ends
