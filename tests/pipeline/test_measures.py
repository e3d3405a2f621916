"""What is measured on responses, against counts on paper."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from keel.pipeline.measures import (
    correlation,
    distinct_n,
    explained_variance,
    kl_per_response,
    repetition,
    response_rows,
    rollout_metrics,
    text_metrics,
)
from keel.records import Rollout, Scores
from tests.pipeline.support import samples_of


def test_distinct_n_counts_over_all_responses_together() -> None:
    rows = [[1, 2, 1, 2], [1, 2]]
    assert distinct_n(rows, 1) == pytest.approx(2 / 6)
    assert distinct_n(rows, 2) == pytest.approx(2 / 4)  # 12 21 12 | 12: two of four are new
    assert distinct_n(rows, 5) == 1.0  # no five-gram, so nothing is said twice
    assert distinct_n([], 1) == 1.0


def test_repetition_is_counted_within_each_response() -> None:
    twice = [1, 2, 3, 4, 1, 2, 3, 4]  # 1234 2341 3412 4123 1234: one of five stood there before
    assert repetition([twice]) == pytest.approx(1 / 5)
    assert repetition([twice, [1, 2, 3, 4]]) == pytest.approx(1 / 10)  # the same gram elsewhere is no repetition
    assert repetition([twice, [1, 2, 3]]) == pytest.approx(1 / 5)  # too short to repeat itself: not counted
    assert repetition([[7] * 5], n=2) == pytest.approx(3 / 4)
    assert repetition([[1]]) == 0.0


def test_correlation_is_pearsons() -> None:
    a = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert correlation(a, -a) == pytest.approx(-1.0)
    # deviations (-4/3, -1/3, 5/3) and (1, -2, 1): 1/3 + 2/3 = 1 over sqrt(42/9 * 6)
    assert correlation(a, torch.tensor([3.0, 0.0, 3.0])) == pytest.approx(1 / math.sqrt(28))
    assert correlation(a, torch.full((3,), 2.0)) == 0.0


def test_kl_sums_over_the_response_alone() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -2.5, float("nan")], [-0.5, -1.0, -1.25]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert kl_per_response(logprobs, reference, mask).tolist() == [1.0, -0.25]


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    returns = torch.tensor([[1.0, 2.0], [3.0, 99.0]])  # variance 2/3
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((2, 2), 5.0), returns, mask) == pytest.approx(
        0.0
    )  # an offset explains nothing
    values = torch.tensor([[1.0, 1.0], [1.0, 99.0]]) * returns / 2  # half of each: a quarter of the variance is left
    assert explained_variance(values, returns, mask) == pytest.approx(0.75)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(2, 2), mask) == 0.0  # nothing to explain


def test_rows_and_text_of_responses() -> None:
    samples = samples_of([(2, 3, 0), (4, 4), (5, 0)])
    assert response_rows(samples.sequences) == [[2, 3, 0], [4, 4], [5, 0]]
    metrics = text_metrics(samples)
    assert metrics["objective/length"] == pytest.approx(7 / 3)
    assert metrics["objective/ended"] == pytest.approx(2 / 3)
    assert metrics["text/distinct_2"] == 1.0
    assert metrics["text/repetition"] == 0.0


def test_the_metrics_of_a_rollout_by_hand() -> None:
    samples = samples_of([(2, 0), (3, 4, 0)])
    assert samples.logprobs is not None
    mask = samples.sequences.response_mask
    scores = Scores(
        total=torch.tensor([1.0, 3.0]),
        parts={"sure": torch.tensor([1.0, 3.0]), "shy": torch.tensor([float("nan"), 2.0])},
        cut={"sure": torch.tensor([True, False])},
        members={"sure": torch.tensor([[0.0, 2.0], [3.0, 3.0]])},
    )
    gap = torch.tensor([[0.5, 0.25, 7.0], [0.0, 0.0, 0.25]])  # 0.75 and 0.25 nats; 7 lies outside the mask
    rollout = Rollout(
        samples=samples,
        logprobs=samples.logprobs,
        ref_logprobs=samples.logprobs - gap,
        values=torch.zeros(2, 3),
        scores=scores,
        group=torch.arange(2),
        policy_version=0,
    )
    rewards = torch.tensor([[0.0, 0.5, 0.0], [0.25, 0.25, 1.0]])
    metrics = rollout_metrics(rollout, rewards, rewards * mask)
    assert metrics["objective/scores"] == 2.0
    assert metrics["objective/scores_std"] == 1.0  # population
    assert metrics["objective/rewards"] == pytest.approx(1.0)
    assert metrics["objective/kl"] == pytest.approx(0.5)
    assert metrics["objective/kl_per_token"] == pytest.approx(1.0 / 5)
    assert metrics["objective/kl_standard_error"] == pytest.approx(0.25 / math.sqrt(2))
    assert metrics["objective/surprise"] == pytest.approx(1.0)
    assert metrics["objective/score_length_correlation"] == pytest.approx(1.0)
    assert metrics["ppo/val/explained_variance"] == pytest.approx(0.0)
    assert metrics["reward/sure"] == 2.0
    assert metrics["reward/sure/std"] == 1.0  # population
    assert metrics["reward/sure/missing"] == 0.0
    assert metrics["reward/sure/cut"] == 0.5
    assert metrics["reward/sure/disagreement"] == 0.5  # population sds 1 and 0
    assert metrics["reward/shy"] == 2.0
    assert metrics["reward/shy/std"] == 0.0  # of the one that it has an opinion on
    assert metrics["reward/shy/missing"] == 0.5
    assert metrics.keys().isdisjoint({"reward/shy/cut", "reward/shy/disagreement"})

    silent = replace(rollout, scores=Scores(scores.total, {"silent": torch.full((2,), float("nan"))}))
    metrics = rollout_metrics(silent, rewards, rewards)
    assert math.isnan(metrics["reward/silent"])
    assert math.isnan(metrics["reward/silent/std"])
    assert metrics["reward/silent/missing"] == 1.0

    kinds = [replace(prompt, kind=kind) for prompt, kind in zip(rollout.samples.prompts, ("b", "a"), strict=True)]
    of_kinds = replace(rollout, samples=replace(rollout.samples, prompts=tuple(kinds)))
    metrics = rollout_metrics(of_kinds, rewards, rewards)
    assert metrics["objective/scores/b"] == float(scores.total[0])
    assert metrics["objective/scores/a"] == float(scores.total[1])
    assert scores.total[0] != scores.total[1]


def test_of_a_batch_drawn_ahead_the_kl_is_that_of_the_policy_that_drew_it() -> None:
    """ "4 5", drawn with 1/2 and 1/4 where the reference has 1/4 each; the policy that trains now has 1/8 and 1/4."""
    drawn, ref, now = (torch.tensor([row]).log() for row in ([0.5, 0.25], [0.25, 0.25], [0.125, 0.25]))
    samples = replace(samples_of([(4, 5)]), lag=1)
    nothing = torch.zeros(1, 2)
    scores = Scores(torch.ones(1), {})
    rollout = Rollout(samples, now, ref, nothing, scores, torch.zeros(1, dtype=torch.long), 0, sampler_logprobs=drawn)
    metrics = rollout_metrics(rollout, nothing, None)
    assert metrics["objective/kl"] == pytest.approx(math.log(2))  # of the newer one it would be -log 2
    assert metrics["objective/surprise"] == pytest.approx(1.5 * math.log(2))
    assert metrics["ppo/policy/lag"] == 1
    assert metrics["ppo/policy/staleness"] == pytest.approx((3 / 4 + 0) / 2)
    on_time = rollout_metrics(replace(rollout, samples=replace(samples, lag=0)), nothing, None)
    assert on_time["objective/kl"] == pytest.approx(-math.log(2))
    assert on_time["ppo/policy/sampler_gap"] == pytest.approx(3 / 8)
    assert on_time["ppo/policy/sampler_gap_rms"] == pytest.approx(math.log(4) / 2**0.5)
