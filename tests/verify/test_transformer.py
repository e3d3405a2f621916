"""The tiny transformer of the laboratory: what is enumerated is what it computes, samples and trains."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keel.config.direct import DirectConfig
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import PolicyScorer
from keel.models.policy import Policy
from keel.pipeline.measures import response_rows
from keel.seeds import Draws
from keel.verify import exact
from keel.verify.tabular import all_sequences, prompt_items
from keel.verify.training import world_config
from keel.verify.transformer import (
    fit_exactly,
    renderer,
    sampled_choices,
    start,
    train_on_preferences,
    train_transformer,
    world_around,
)
from keel.verify.transformer_checks import ALGORITHMS, settings
from keel.verify.worlds import World, response_logprobs


@cache
def _world() -> tuple[World, nn.Module]:
    backbone = start()
    return world_around(backbone), backbone


def _responses(world: World) -> list[tuple[int, ...]]:
    tokens, lengths = world.tree.tokens.tolist(), world.tree.mask.sum(dim=1).tolist()
    return [tuple(row[:length]) for row, length in zip(tokens, lengths, strict=True)]


def _mean_gap(world: World, logits: Tensor) -> float:
    return float(exact.gap(world, logits, 1.0).mean())


def test_the_model_has_some_seven_thousand_weights() -> None:
    assert sum(weight.numel() for weight in start().parameters()) == 7056


@torch.no_grad()
def test_enumeration_is_a_naive_loop_over_the_models_own_logits() -> None:
    world, backbone = _world()
    model: Any = backbone
    prompt = world.prompts[5].tolist()
    listed = response_logprobs(world.tree, world.ref_logits)[5]

    @cache
    def following(said: tuple[int, ...]) -> list[float]:
        logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1]
        found: list[float] = logits.double().log_softmax(dim=0).tolist()
        return found

    for response, logprob in zip(_responses(world), listed.tolist(), strict=True):
        naive = sum(following(response[:t])[token] for t, token in enumerate(response))
        assert naive == pytest.approx(logprob, abs=1e-4)


def test_enumeration_is_the_forward_that_trains() -> None:
    world, backbone = _world()
    scorer = PolicyScorer(Policy(backbone), temperature=1.0, token_budget=10_000)
    scored = scorer.logprobs(all_sequences(world)).double().sum(dim=1)
    torch.testing.assert_close(scored, response_logprobs(world.tree, world.ref_logits).flatten(), rtol=0, atol=1e-4)


def test_rewards_are_standardised_under_the_model_which_is_not_uniform() -> None:
    world, _ = _world()
    probs = response_logprobs(world.tree, world.ref_logits).exp()
    for prompt in range(world.num_prompts):
        pairs = list(zip(probs[prompt].tolist(), world.rewards[prompt].tolist(), strict=True))
        assert sum(p for p, _ in pairs) == pytest.approx(1.0, abs=1e-6)
        assert sum(p * r for p, r in pairs) == pytest.approx(0.0, abs=1e-6)
        assert sum(p * r * r for p, r in pairs) == pytest.approx(1.0, abs=1e-6)
    spread = world.ref_logits.log_softmax(dim=-1).std(dim=-1)
    assert float(spread.mean()) > 0.3


def test_samples_fit_the_enumerated_probabilities() -> None:
    """Pearson's chi-square for each of two prompts, cells with few expected draws taken together."""
    world, backbone = _world()
    draws, per_prompt = Draws(0, "test"), 4000
    items = [item for item in prompt_items(world)[3:5] for _ in range(per_prompt)]
    config = SamplingConfig(max_new_tokens=world.tree.longest, batch=len(items))
    samples = CachedSampler(Policy(backbone), renderer()).sample(items, config, DrawKey(draws, "rollout", 0))
    rows = response_rows(samples.sequences)
    responses = _responses(world)
    probs = response_logprobs(world.tree, world.ref_logits).exp()
    for index, prompt in enumerate((3, 4)):
        seen = Counter(tuple(row) for row in rows[index * per_prompt : (index + 1) * per_prompt])
        assert seen.keys() <= set(responses)
        cells = [(p * per_prompt, seen[said]) for said, p in zip(responses, probs[prompt].tolist(), strict=True)]
        rare = [cell for cell in cells if cell[0] < 5]
        pooled = [cell for cell in cells if cell[0] >= 5] + [(sum(e for e, _ in rare), sum(n for _, n in rare))]
        statistic = sum((n - e) ** 2 / e for e, n in pooled)
        freedom = len(pooled) - 1
        assert freedom > 50
        assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", ["gae", "rloo"])
def test_the_stage_trains_a_copy_of_it_towards_the_optimum(kind: str) -> None:
    world, backbone = _world()
    config = world_config(
        world,
        beta=1.0,
        iterations=8,
        lr=3e-3,
        rollout_batch=128,
        per_prompt=16,
        sampling={"batch": 128},
        advantage={"kind": kind, "whiten": False},
        update={"reduction": "sequence_sum", "minibatches": 2, "epochs": 4},
    )
    course = train_transformer(world, backbone, config, seed=0)
    assert course.mean_gap[0] == pytest.approx(_mean_gap(world, world.ref_logits))
    assert _mean_gap(world, course.logits) < 0.9 * course.mean_gap[0]
    again = world_around(backbone)
    torch.testing.assert_close(again.ref_logits, world.ref_logits, rtol=0, atol=0)


def test_preferences_stand_both_ways_with_their_probability() -> None:
    world, backbone = _world()
    said = _responses(world)
    prompts = [tuple(prompt) for prompt in world.prompts.tolist()]
    choices = sampled_choices(world, backbone, 10, Draws(0, "direct"))
    assert 0 < len(choices) <= 2 * 10 * world.num_prompts
    for one, other in zip(choices[::2], choices[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.weight + other.weight == pytest.approx(1.0)
        prompt = prompts.index(one.chosen.tokens[:2])
        better, worse = (float(world.rewards[prompt, said.index(row.tokens[2:])]) for row in one.rows)
        assert one.weight == pytest.approx(math.exp(better) / (math.exp(better) + math.exp(worse)))


def test_the_direct_stage_trains_a_copy_of_it_towards_the_same_optimum() -> None:
    world, backbone = _world()
    config = DirectConfig(
        kind="dpo", beta=1.0, lr=3e-3, epochs=8, batch=8, max_pairs=100, validate_every=99, checkpoint_every=99
    )
    logits = train_on_preferences(world, backbone, config, pairs=200, seed=0)
    assert _mean_gap(world, logits) < 0.9 * _mean_gap(world, world.ref_logits)
    torch.testing.assert_close(world_around(backbone).ref_logits, world.ref_logits, rtol=0, atol=0)


def test_exact_ascent_shows_how_near_it_can_come() -> None:
    world, backbone = _world()
    logits = fit_exactly(world, backbone, beta=1.0, steps=40, lr=3e-3)
    assert _mean_gap(world, logits) < 0.8 * _mean_gap(world, world.ref_logits)


def test_every_check_is_a_recipe_without_discount_bonus_or_transform() -> None:
    world, _ = _world()
    for algorithm in ALGORITHMS:
        config = settings(algorithm, world)
        assert config.advantage.gamma == 1.0
        assert config.update.entropy_coef == 0.0
        assert not config.shaping.model_fields_set
