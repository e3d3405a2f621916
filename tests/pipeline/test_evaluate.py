"""The evaluation's numbers, by hand and on a language whose frontier is known exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keel.config.data import DataConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.sft import SFTConfig
from keel.engines.base import DrawKey
from keel.engines.best_of import BestOfSampler
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import PolicyScorer
from keel.functional.closed_form import best_of_n_kl, optimal_policy
from keel.pipeline.evaluate import EvaluateEngines, Judged, compare, describe, evaluate, likelihoods, spent
from keel.records import EncodedRow, Samples, Scores, Sequences
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.pipeline.support import (
    EOS,
    PROMPT,
    Heard,
    Response,
    TableScorer,
    begin_stage,
    exact_distribution,
    samples_of,
    toy_policy,
    toy_renderer,
)
from tests.pipeline.toy_ppo import toy_scores

DRAWS = Draws(0, "evaluate")


def config_of(**changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "prompts": DataConfig(path="toy.jsonl"),
        "sampling": {"max_new_tokens": 2, "batch": 4096},
        "frontier_samples": 2048,
        "bootstrap": 500,
    }
    return EvaluateConfig.model_validate(settings | changes)


def engines_of(policy_seed: int = 0, table: Mapping[Response, float] | None = None) -> EvaluateEngines:
    """The reference is the toy language; the policy too, unless it has another seed."""
    policy, reference = toy_policy(seed=policy_seed), toy_policy()
    renderer, scores = toy_renderer(), table or toy_scores(2)
    policies = [PolicyScorer(model, temperature=1.0, token_budget=100_000) for model in (policy, reference)]
    return EvaluateEngines(
        policy_sampler=CachedSampler(policy, renderer),
        reference_sampler=CachedSampler(reference, renderer),
        reference=policies[1],
        likelihood=(policies[0], policies[1]),
        scorer=TableScorer("table", scores),
        utility=TableScorer("truth", {response: -score for response, score in scores.items()}),
        measures={"ends": TableScorer("ends", {response: float(response[-1] == EOS) for response in scores})},
    )


# --- two models compared ---


def test_comparing_by_hand() -> None:
    policy = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    reference = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    # first prompt: 1>1 tie, 1>0, 2>1, 2>0: 3.5 of 4; second: 0=0 tie, 0<3, twice: 1 of 4
    found = compare(policy, reference, 200, DRAWS)
    assert found["win_rate"] == (3.5 / 4 + 1 / 4) / 2
    assert found["ties"] == 3 / 8
    assert found["difference"] == pytest.approx((1.0 - 1.5) / 2)
    # two prompts: a resample is one of them twice, or both
    assert found["win_rate_interval"] == pytest.approx([1 / 4, 3.5 / 4])
    assert found["difference_interval"] == pytest.approx([-1.5, 1.0])


def test_equals_win_half_and_are_sure_of_it() -> None:
    found = compare(torch.ones(5, 3), torch.ones(5, 3), 100, DRAWS)
    assert found == {
        "win_rate": 0.5,
        "win_rate_interval": [0.5, 0.5],
        "ties": 1.0,
        "difference": 0.0,
        "difference_interval": [0.0, 0.0],
    }


def test_the_interval_is_that_of_independent_prompts_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(400, 2, generator=generator) + shift for shift in (0.5, 0.0))
    found = compare(policy, reference, 2000, DRAWS)
    assert found == compare(policy, reference, 2000, DRAWS)
    means = (policy - reference).double().mean(dim=1)
    half = 1.96 * float(means.std()) / math.sqrt(400)  # the normal approximation
    low, high = found["difference_interval"]
    assert (low, high) == pytest.approx((found["difference"] - half, found["difference"] + half), abs=0.1 * half)
    low, high = found["win_rate_interval"]
    assert low < found["win_rate"] < high
    assert low < 0.5 * (1 + math.erf(0.5 / 2)) < high  # P(N(0.5, 2) > 0)


def test_prompts_are_resampled_whole() -> None:
    """Responses to one prompt are alike, so more of them tell little more."""
    generator = torch.Generator().manual_seed(1)
    prompt_effect = torch.randn(30, 1, generator=generator)
    once = compare(prompt_effect, torch.zeros(30, 1), 2000, DRAWS)["difference_interval"]
    often = compare(prompt_effect.expand(30, 8), torch.zeros(30, 8), 2000, DRAWS)["difference_interval"]
    assert often == pytest.approx(once)


def test_describing_one_model() -> None:
    samples = samples_of([(2, 2, EOS), (2, EOS), (3, 3, 3), (2, EOS)])
    judged = Judged(
        samples=samples,
        scores=torch.tensor([[1.0, 2.0], [3.0, 2.0]]),
        utility=torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
        measures={"polite": torch.tensor([[1.0, 0.0], [1.0, 1.0]])},
        disagreement={"pair": 0.5},
    )
    assert describe(judged) == {
        "score": 2.0,
        "score_std": pytest.approx(math.sqrt(0.5)),
        "utility": 0.25,
        "length": 10 / 4,
        "ended": 0.75,
        "distinct_1": 3 / 10,
        "distinct_2": 3 / 6,  # 22 20 20 33 33 20
        "repetition": 0.0,
        "score_length_correlation": pytest.approx(np.corrcoef([1, 2, 3, 2], [3, 2, 3, 2])[0, 1], abs=1e-12),
        "disagreement": {"pair": 0.5},
        "measures": {"polite": 0.75},
    }
    assert "utility" not in describe(replace(judged, utility=None))


# --- what the KL was worth ---


def tilted(beta: float, table: Mapping[Response, float]) -> tuple[float, float]:
    """Mean score and KL of the optimum at that coefficient, over all responses."""
    start = exact_distribution(toy_policy(), 2)
    start = start / start.sum()
    rewards = torch.tensor(list(table.values()), dtype=torch.float64)
    best = optimal_policy(start, rewards, beta)
    return float(best @ rewards), float(torch.xlogy(best, best / start).sum())


def test_the_exact_optimum_reaches_all_that_its_kl_can_buy() -> None:
    table = toy_scores(2)
    for beta in (0.3, 1.0):
        score, kl = tilted(beta, table)
        found = spent(config_of(), engines_of(), [PROMPT], torch.full((1, 4), score), torch.full((1, 4), kl), DRAWS)
        assert found["kl"] == pytest.approx(kl)
        assert found["score"] == pytest.approx(score)
        assert found["bound"] == pytest.approx(score, abs=0.05)  # from 2048 samples
        assert found["reached"] == pytest.approx(1.0, abs=0.07)
        assert found["reliable"] is True
        assert found["bound_from_half_the_samples"] == pytest.approx(found["bound"], abs=0.05)


def test_a_policy_off_the_frontier_reaches_less() -> None:
    score, kl = tilted(1.0, toy_scores(2))
    start, _ = tilted(1e9, toy_scores(2))
    halfway = (score + start) / 2
    found = spent(config_of(), engines_of(), [PROMPT], torch.full((1, 4), halfway), torch.full((1, 4), kl), DRAWS)
    assert found["reached"] == pytest.approx(0.5, abs=0.12)


def test_the_curve_and_best_of_n() -> None:
    score, kl = tilted(0.3, toy_scores(2))
    found = spent(config_of(), engines_of(), [PROMPT], torch.full((1, 4), score), torch.full((1, 4), kl), DRAWS)
    at, bounds = zip(*found["curve"], strict=True)
    assert (at[0], bounds[0]) == (0.0, pytest.approx(found["reference_score"]))
    assert at[-1] == pytest.approx(math.log(2048))
    assert list(bounds) == sorted(bounds)
    sizes, kls, scores = zip(*found["best_of_n"], strict=True)
    assert sizes == tuple(2**power for power in range(12))
    odds: dict[float, float] = {}  # of each score: few responses are many ties
    for p, r in zip(exact_distribution(toy_policy(), 2), toy_scores(2).values(), strict=True):
        odds[r] = odds.get(r, 0.0) + float(p)
    below, exact = 0.0, 0.0
    for r in sorted(odds):
        drawn = (below + odds[r]) ** 2 - below**2
        below, exact = below + odds[r], exact + drawn * math.log(drawn / odds[r])
    assert kls[1] == pytest.approx(exact, abs=0.01)
    assert kls[1] < math.log(2) - 0.5
    sizes, at, truth = zip(*found["best_of_n_utility"], strict=True)
    assert at == kls
    assert truth == pytest.approx([-score for score in scores])  # the made-up truth is the score's opposite
    assert scores[0] == pytest.approx(found["reference_score"])
    start = exact_distribution(toy_policy(), 2)
    rewards = list(toy_scores(2).values())
    best_of_two = sum(
        float(p) * float(q) * max(r, s)
        for p, r in zip(start, rewards, strict=True)
        for q, s in zip(start, rewards, strict=True)
    )
    assert scores[1] == pytest.approx(best_of_two, abs=0.05)


def test_a_response_that_is_drawn_twice_ties_however_its_score_was_rounded() -> None:
    class Rounded(TableScorer):
        def score(self, samples: Samples) -> Scores:
            found = super().score(samples)
            return replace(found, total=found.total + 1e-6 * torch.arange(len(found.total)))

    distinct = {response: float(number) for number, response in enumerate(toy_scores(2))}
    drawn = torch.zeros(1, 4), torch.zeros(1, 4), DRAWS
    kls = [
        [at for _, at, _ in spent(config_of(), replace(engines_of(), scorer=scorer), [PROMPT], *drawn)["best_of_n"]]
        for scorer in (TableScorer("table", distinct), Rounded("table", distinct))
    ]
    assert kls[1] == pytest.approx(kls[0])
    assert kls[0][-1] < best_of_n_kl(2048) - 1


def test_beyond_log_n_the_bound_is_called_unreliable() -> None:
    config = config_of(frontier_samples=16)
    for kl, reliable in ((2.7, True), (2.8, False)):  # log 16 = 2.77
        found = spent(config, engines_of(), [PROMPT], torch.ones(1, 4), torch.full((1, 4), kl), DRAWS)
        assert found["reliable"] is reliable
        assert found["reliable_up_to_kl"] == pytest.approx(math.log(16))
    assert found["curve"][-1][0] == pytest.approx(2.8 * 1.3)  # the curve still covers the policy


@pytest.mark.parametrize("kl", [0.0, -1e-7, 2e-7])
def test_a_policy_that_is_its_reference_reached_nothing_that_could_be_said(kl: float) -> None:
    """A KL of rounding buys a gain far below the noise of the scores: a share of it would be any number."""
    config, engines, prompts = config_of(frontier_samples=64), engines_of(), [PROMPT] * 8
    samples = engines.policy_sampler.sample(prompts * 4, config.sampling, DrawKey(DRAWS, "other", iteration=0))
    scores = engines.scorer.score(samples).total.reshape(8, 4)
    found = spent(config, engines, prompts, scores, torch.full((8, 4), kl), DRAWS)
    assert found["kl"] == pytest.approx(max(0.0, kl))
    assert found["bound"] == pytest.approx(found["reference_score"], abs=1e-2)
    assert found["reached"] is None


def test_constant_scores_leave_nothing_to_gain() -> None:
    flat = dict.fromkeys(toy_scores(2), 0.5)
    found = spent(config_of(), engines_of(table=flat), [PROMPT], torch.full((1, 4), 0.5), torch.ones(1, 4), DRAWS)
    assert (found["bound"], found["reached"]) == (0.5, None)


# --- likelihoods ---


def test_likelihoods_are_the_supervised_stages_validation_loss() -> None:
    rows = [EncodedRow((2, 7, 7, EOS), 2), EncodedRow((3, 3, 5, 6, 2, EOS), 1), EncodedRow((2, EOS), 1)]
    found = likelihoods(engines_of(policy_seed=3), rows)
    assert found["rows"] == 3
    for name, seed in (("policy_nll", 3), ("reference_nll", 0)):
        config = SFTConfig(data=DataConfig(path="toy.jsonl"))
        learner = GradientLearner[Sequences]("sft", toy_policy(seed=seed), sft_loss, config, total_steps=1)
        one_by_one = [learner.measure([_batch(row)]).sums["sft/loss"] for row in rows]
        assert found[name] == pytest.approx(
            sum(total for total, _ in one_by_one) / sum(weight for _, weight in one_by_one), abs=1e-5
        )


def _batch(row: EncodedRow) -> Sequences:
    return Sequences(
        tokens=torch.tensor([row.tokens]),
        prompt_lengths=torch.tensor([row.prompt_length]),
        response_mask=torch.ones(1, row.response_length, dtype=torch.bool),
    )


# --- the stage ---


def evaluated(folder: Path, engines: EvaluateEngines, **changes: Any) -> dict[str, Any]:
    prompts = [replace(PROMPT, text=f"prompt {number}") for number in range(30)]
    return evaluate(
        config_of(frontier_samples=32, per_prompt=3, count=26, **changes),
        engines,
        prompts,
        [EncodedRow((2, 7, EOS), 2)],
        stage=begin_stage(folder, "evaluate"),
        draws=DRAWS,
        console=Heard(),
    )


def test_the_whole_evaluation(tmp_path: Path) -> None:
    engines = engines_of(policy_seed=3)
    summary = evaluated(tmp_path, engines)
    assert (summary["prompts"], summary["per_prompt"], summary["frontier"]["prompts"]) == (26, 3, 26)
    start, end = exact_distribution(toy_policy(), 2), exact_distribution(toy_policy(seed=3), 2)
    rewards = torch.tensor(list(toy_scores(2).values()), dtype=torch.float64)
    exact_kl = float(torch.xlogy(end, end / start).sum())
    assert summary["kl"] == pytest.approx(exact_kl, abs=4 * summary["kl_standard_error"])
    assert 0 < summary["kl_standard_error"] < 0.2
    assert summary["policy"]["score"] == pytest.approx(float(end @ rewards), abs=0.25)
    assert summary["reference"]["score"] == pytest.approx(float(start @ rewards), abs=0.25)
    assert summary["utility"]["difference"] == pytest.approx(-summary["score"]["difference"], abs=1e-6)
    assert summary["utility"]["win_rate"] == pytest.approx(1 - summary["score"]["win_rate"])
    assert summary["kl_per_token"] == pytest.approx(summary["kl"] / summary["policy"]["length"], rel=1e-6)
    assert summary["policy"]["measures"]["ends"] == pytest.approx(summary["policy"]["ended"])
    lines = read_lines(tmp_path / "evaluate" / "samples.jsonl")
    assert [line["prompt"] for line in lines] == [f"prompt {number}" for number in range(24)]
    assert all(line["policy_utility"] == -line["policy_score"] for line in lines)
    assert evaluated(tmp_path / "again", engines) == summary


def test_the_kl_is_summed_over_each_response(tmp_path: Path) -> None:
    """k1 = log pi - log pi_ref at the sampled tokens, response by response."""
    engines = engines_of(policy_seed=3)
    evaluated(tmp_path, engines)
    config = config_of(count=26, per_prompt=3)
    samples = engines.policy_sampler.sample([PROMPT] * 78, config.sampling, DrawKey(DRAWS, "policy", iteration=0))
    own, other = engines.likelihood[0].logprobs(samples.sequences), engines.reference.logprobs(samples.sequences)
    for row, line in enumerate(read_lines(tmp_path / "evaluate" / "samples.jsonl")):
        length = int(samples.sequences.response_lengths[3 * row])
        assert line["kl"] == pytest.approx(float((own - other)[3 * row, :length].sum()), abs=1e-5)


def test_without_a_known_truth_and_demonstrations_their_parts_are_left_out(tmp_path: Path) -> None:
    engines = replace(engines_of(), utility=None)
    summary = evaluate(
        config_of(frontier_samples=8),
        engines,
        [PROMPT] * 3,
        [],
        stage=begin_stage(tmp_path, "evaluate"),
        draws=DRAWS,
        console=Heard(),
    )
    assert not {"utility", "demonstrations"} & set(summary)
    assert "policy_utility" not in read_lines(tmp_path / "evaluate" / "samples.jsonl")[0]
    assert summary["kl"] == pytest.approx(0.0, abs=1e-6)
    assert summary["frontier"]["reached"] is None


def test_the_best_of_n_is_at_most_a_known_distance_further_away(tmp_path: Path) -> None:
    engines = engines_of()
    best = replace(engines, policy_sampler=BestOfSampler(engines.policy_sampler, engines.scorer, 4))
    config = config_of(best_of=4, count=100, per_prompt=4, frontier_samples=16)
    found = evaluate(
        config, best, [PROMPT] * 100, [], stage=begin_stage(tmp_path, "evaluate"), draws=DRAWS, console=Heard()
    )
    assert found["kl"] == pytest.approx(math.log(4) - 3 / 4, abs=1e-5)  # the sampler is the reference itself
    assert found["best_of"] == 4
    assert found["score"]["win_rate"] > 0.7
