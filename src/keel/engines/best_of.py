"""Best-of-n: draw n responses a prompt and keep the one that scores highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from keel.batching import take, take_tokens
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, Sampler, Scorer
from keel.records import PromptItem, Samples


class BestOfSampler:
    """A sampler whose every response is the best of `n` of another's, by `scorer`; the first of those that tie.

    The log-probabilities are those of the sampler that drew: best-of-n is up to `functional.closed_form.best_of_n_kl`
    nats further away than they say.
    """

    def __init__(self, sampler: Sampler, scorer: Scorer, n: int) -> None:
        self.sampler = sampler
        self.scorer = scorer
        self.n = n

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """len(prompts) responses, in their order; n times as many are drawn."""
        repeated = [prompt for prompt in prompts for _ in range(self.n)]
        drawn = self.sampler.sample(repeated, config, replace(key, first_sample=key.first_sample * self.n))
        scores = self.scorer.score(drawn).total.reshape(len(prompts), self.n)
        rows = (scores.argmax(dim=1) + torch.arange(len(prompts)) * self.n).tolist()
        return Samples(
            sequences=take(drawn.sequences, rows),
            logprobs=None if drawn.logprobs is None else take_tokens(drawn.logprobs, drawn.sequences, rows),
            ended=drawn.ended[torch.tensor(rows)],
            prompts=tuple(prompts),
            texts=tuple(drawn.texts[row] for row in rows),
            judged=None if drawn.judged is None else take(drawn.judged, rows),
        )
