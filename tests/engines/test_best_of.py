from __future__ import annotations

import torch

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.best_of import BestOfSampler
from keel.engines.sampler import CachedSampler
from keel.seeds import Draws
from tests.pipeline.support import (
    PROMPT,
    TableScorer,
    all_responses,
    exact_distribution,
    toy_policy,
    toy_renderer,
)
from tests.pipeline.toy_ppo import toy_scores

KEY = DrawKey(Draws(0, "best of"), "policy", iteration=2, first_sample=5)
SAMPLING = SamplingConfig(max_new_tokens=2, batch=4096)


def sampler() -> CachedSampler:
    return CachedSampler(toy_policy(), toy_renderer())


def test_the_best_of_its_own_draws_is_kept_with_all_its_fields() -> None:
    scores = TableScorer("table", toy_scores(2))
    best = BestOfSampler(sampler(), scores, 3).sample([PROMPT] * 4, SAMPLING, KEY)
    every = sampler().sample([PROMPT] * 12, SAMPLING, DrawKey(KEY.draws, "policy", iteration=2, first_sample=15))
    worth = scores.score(every).total.reshape(4, 3)
    assert scores.score(best).total.tolist() == worth.max(dim=1).values.tolist()
    assert every.logprobs is not None
    assert best.logprobs is not None
    for index, row in enumerate((worth.argmax(dim=1) + 3 * torch.arange(4)).tolist()):
        length = int(best.sequences.response_lengths[index])
        assert best.texts[index] == every.texts[row]
        assert bool(best.ended[index]) == bool(every.ended[row])
        assert best.logprobs[index, :length].tolist() == every.logprobs[row, :length].tolist()
        assert best.sequences.response_tokens()[index, :length].tolist() == (
            every.sequences.response_tokens()[row, :length].tolist()
        )


def test_its_scores_follow_the_exact_law() -> None:
    """P(best = r) = F(r)^n - F(r-)^n."""
    n, count = 4, 3000
    table = toy_scores(2)
    probabilities = exact_distribution(toy_policy(), 2).tolist()
    best = BestOfSampler(sampler(), TableScorer("table", table), n).sample([PROMPT] * count, SAMPLING, KEY)
    found = TableScorer("table", table).score(best).total
    for value in sorted(set(table.values())):
        pairs = list(zip(all_responses(2), probabilities, strict=True))
        up_to = sum(p for response, p in pairs if table[response] <= value)
        below = sum(p for response, p in pairs if table[response] < value)
        expected = up_to**n - below**n
        share = float((found - value).abs().lt(1e-6).double().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-9
