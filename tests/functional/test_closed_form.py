from __future__ import annotations

import math
import statistics
from collections import Counter
from itertools import combinations, product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.closed_form import (
    best_of_n_kl,
    best_of_n_score,
    estimated_best_of_n_kl,
    frontier,
    log_partition,
    objective,
    optimal_policy,
)

HALVES = torch.tensor([0.5, 0.5], dtype=torch.float64)
SCORES = torch.tensor([1.0, 3.0], dtype=torch.float64)


def divergence(p: Tensor, q: Tensor) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


@pytest.mark.parametrize(
    ("beta", "probabilities", "best", "kl"),
    [(0.5, [0.0179862, 0.9820138], 2.662501, 0.603052), (10.0, [0.450166, 0.549834], 2.049917, 0.004975)],
)
def test_two_responses(beta: float, probabilities: list[float], best: float, kl: float) -> None:
    policy = optimal_policy(HALVES, SCORES, beta)
    assert policy.tolist() == pytest.approx(probabilities, abs=5e-7)
    assert objective(policy, HALVES, SCORES, beta).item() == pytest.approx(best, abs=5e-7)
    assert divergence(policy, HALVES) == pytest.approx(kl, abs=5e-7)


def test_partition_of_the_two_responses() -> None:
    assert log_partition(HALVES, SCORES, 0.5).exp().item() == pytest.approx(205.4089, abs=5e-5)


def random_problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits, rewards = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    return logits.softmax(0), ref_logits.softmax(0), rewards


def test_the_optimum_is_worth_beta_log_z_and_every_shortfall_is_a_kl_to_it() -> None:
    policy, reference, rewards = random_problem()
    beta = 0.3
    best = optimal_policy(reference, rewards, beta)
    worth = objective(best, reference, rewards, beta).item()
    assert worth == pytest.approx(beta * log_partition(reference, rewards, beta).item())
    shortfall = worth - objective(policy, reference, rewards, beta).item()
    assert shortfall == pytest.approx(beta * divergence(policy, best))


def test_objective_is_the_score_less_the_priced_kl() -> None:
    policy, reference, rewards = random_problem()
    expected = sum((policy * rewards).tolist()) - 0.3 * divergence(policy, reference)
    assert objective(policy, reference, rewards, 0.3).item() == pytest.approx(expected)


def test_limits_of_beta() -> None:
    reference = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    rewards = torch.tensor([0.0, 7.0, 7.0, 1.0], dtype=torch.float64)
    assert_close(optimal_policy(reference, rewards, 1e-3), torch.tensor([0, 0.5, 0.5, 0], dtype=torch.float64))
    assert_close(optimal_policy(reference, rewards, 1e9), reference, atol=1e-8, rtol=0)


def test_responses_that_cannot_be_drawn() -> None:
    reference = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    rewards = torch.tensor([1.0, 3.0, 99.0], dtype=torch.float64)
    best = optimal_policy(reference, rewards, 0.5)
    assert best[2].item() == 0.0
    assert objective(best, reference, rewards, 0.5).item() == pytest.approx(2.662501, abs=5e-7)
    assert objective(torch.full_like(reference, 1 / 3), reference, rewards, 0.5).item() == -math.inf


def test_erratum_08_the_multiplier_that_makes_z_sum_to_one() -> None:
    _, reference, rewards = random_problem()
    beta = 0.7
    best = optimal_policy(reference, rewards, beta)
    multipliers = rewards - beta * ((best / reference).log() + 1)  # stationarity of the Lagrangian, at every response
    partition = (reference * (rewards / beta).exp()).sum().item()
    assert [math.exp(1 + x / beta) for x in multipliers.tolist()] == pytest.approx([partition] * 6)


@pytest.mark.parametrize("function", [log_partition, optimal_policy])
def test_beta_must_be_above_zero(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="beta must be above 0"):
        function(HALVES, SCORES, 0.0)


def grid_frontier(scores: Tensor, kl: float) -> float:
    """The minimum over a fine grid of beta, term by term."""
    best = math.inf
    for step in range(-4000, 4001):
        beta = math.exp(step / 400)
        total = 0.0
        for row in scores.tolist():
            top = max(row)
            total += top / beta + math.log(sum(math.exp((r - top) / beta) for r in row) / len(row))
        best = min(best, beta * kl + beta * total / len(scores))
    return best


def test_frontier_of_the_two_responses_is_the_score_of_the_optimum() -> None:
    kl = divergence(optimal_policy(HALVES, SCORES, 0.5), HALVES)
    point = frontier(SCORES[None], kl)
    assert point.bound == pytest.approx(2.964028, abs=5e-7)
    assert point.beta == pytest.approx(0.5, rel=1e-9)
    assert point.reliable


@pytest.mark.parametrize("kl", [1e-3, 0.1, 0.5, 1.0, 1.3])
def test_frontier_against_a_grid_over_prompts_that_differ(kl: float) -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores *= torch.tensor([[0.3], [1.0], [4.0]])
    assert frontier(scores, kl).bound == pytest.approx(grid_frontier(scores, kl), rel=1e-5)


def test_the_optimum_at_the_frontiers_beta_spends_the_kl_and_earns_the_bound() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    point = frontier(scores, 1.5)
    uniform = torch.full((50,), 0.02, dtype=torch.float64)
    policies = [optimal_policy(uniform, row, point.beta) for row in scores]
    assert statistics.fmean(divergence(p, uniform) for p in policies) == pytest.approx(1.5)
    earned = statistics.fmean(float(p @ row) for p, row in zip(policies, scores, strict=True))
    assert point.bound == pytest.approx(earned, rel=1e-9)


def test_frontier_at_both_ends() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 1.0, -3.0]], dtype=torch.float64)
    free = frontier(scores, 0.0)
    assert (free.bound, free.beta, free.reliable) == (1.0, math.inf, True)
    beyond = frontier(scores, 3.0)
    assert (beyond.bound, beyond.beta, beyond.reliable) == (3.0, 0.0, False)
    mean_log_of_what_is_not_best = (math.log(4) + math.log(4 / 3)) / 2
    assert frontier(scores, mean_log_of_what_is_not_best).bound == pytest.approx(3.0)
    assert frontier(scores, mean_log_of_what_is_not_best - 0.01).bound < 3.0 - 1e-3


def test_frontier_of_equal_scores_is_flat() -> None:
    assert frontier(torch.full((2, 3), 4.0), 0.5).bound == 4.0


def test_frontier_is_reliable_up_to_the_log_of_the_samples() -> None:
    scores = torch.arange(8.0)[None]
    assert frontier(scores, math.log(8) - 1e-6).reliable
    assert not frontier(scores, math.log(8) + 1e-6).reliable


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e6), (1.0, -1e6)])
def test_frontier_follows_scale_and_shift(scale: float, shift: float) -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain, moved = frontier(scores, 0.7), frontier(scores * scale + shift, 0.7)
    assert moved.bound == pytest.approx(plain.bound * scale + shift, rel=1e-9)
    assert moved.beta == pytest.approx(plain.beta * scale, rel=1e-6)


def test_frontier_of_a_tiny_kl_rises_by_the_square_root() -> None:
    scores = torch.randn(1, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gain = frontier(scores, 1e-8).bound - scores.mean().item()
    assert gain == pytest.approx(math.sqrt(2e-8) * scores.std(correction=0).item(), rel=1e-3)


def test_frontier_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="kl must not be negative"):
        frontier(SCORES[None], -0.1)
    with pytest.raises(ValueError, match=r"need scores \[P, n\]"):
        frontier(SCORES, 0.1)


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (2, math.log(2) - 0.5), (4, 0.6362944), (16, 1.8350887)])
def test_best_of_n_kl_numbers(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-8)


def test_best_of_n_kl_is_the_limit_of_many_responses_and_an_upper_bound() -> None:
    for num_responses, tolerance in ((10, math.inf), (5000, 1e-3)):
        rises = [(k / num_responses) ** 4 - ((k - 1) / num_responses) ** 4 for k in range(1, num_responses + 1)]
        exact = sum(p * math.log(p * num_responses) for p in rises)
        assert 0 < best_of_n_kl(4) - exact < tolerance


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ties_take_off_the_kl_what_their_law_says(n: int) -> None:
    """Ten samples in three atoms: the best of every one of the 10ⁿ draws, counted."""
    scores = [0.0] * 5 + [1.0] * 2 + [7.0] * 3
    drawn = Counter(max(draw) for draw in product(scores, repeat=n))
    exact = sum(count / 10**n * math.log(count / 10**n * 10 / scores.count(atom)) for atom, count in drawn.items())
    assert estimated_best_of_n_kl(torch.tensor([scores]), n) == pytest.approx(exact, abs=1e-12)
    assert estimated_best_of_n_kl(torch.ones(2, 5), 4) == pytest.approx(0.0)  # nothing to choose


@pytest.mark.parametrize("offset", [0.0, 0.499999, 0.5, 123.456])
def test_equal_scores_tie_and_no_others_wherever_they_lie(offset: float) -> None:
    pairs = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64) + offset
    nearly = pairs + torch.tensor([0.0, 1e-9, 0.0, 1e-9], dtype=torch.float64)
    halves = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # the best of two is the lower one in a quarter
    assert estimated_best_of_n_kl(pairs, 2) == pytest.approx(halves)
    assert estimated_best_of_n_kl(nearly, 2) == pytest.approx(best_of_n_kl(2))
    apart = torch.tensor([[0.0, 1.0, 2.0, 1e9]]) + offset  # whatever one of them is
    assert estimated_best_of_n_kl(apart, 2) == pytest.approx(best_of_n_kl(2))


def test_ties_that_the_samples_do_not_show_are_missed() -> None:
    """A fair coin: the best of 4 is heads but for one in sixteen."""
    exact = 1 / 16 * math.log(1 / 8) + 15 / 16 * math.log(15 / 8)
    assert estimated_best_of_n_kl(torch.tensor([[0.0, 1.0]]), 4) == pytest.approx(best_of_n_kl(4))
    assert estimated_best_of_n_kl(torch.tensor([[0.0, 1.0] * 50]), 4) == pytest.approx(exact)


def test_an_atom_among_continuous_scores() -> None:
    """An atom from 0.3 to 0.5 of the law; the rest has the density n F^(n-1), integrated by the midpoint rule."""
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]])
    n, steps = 4, 200_000
    middles = [(step + 0.5) / steps for step in range(steps)]
    density = [n * u ** (n - 1) for u in middles if not 0.3 < u < 0.5]
    atom = 0.5**n - 0.3**n
    exact = sum(p * math.log(p) for p in density) / steps + atom * math.log(atom / 0.2)
    assert estimated_best_of_n_kl(scores, n) == pytest.approx(exact, abs=1e-6)
    both = torch.cat([scores, torch.arange(10.0)[None]])  # and a prompt without ties
    assert estimated_best_of_n_kl(both, n) == pytest.approx((exact + best_of_n_kl(n)) / 2, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_judged_by_another_is_the_mean_over_all_subsets(n: int) -> None:
    generator = torch.Generator().manual_seed(6)
    scores, truth = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    expected = statistics.fmean(
        values[max(subset, key=row.__getitem__)]
        for row, values in zip(scores.tolist(), truth.tolist(), strict=True)
        for subset in combinations(range(6), n)
    )
    assert best_of_n_score(scores, n, truth) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_score_is_the_mean_over_all_subsets(n: int) -> None:
    scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = statistics.fmean(max(subset) for row in scores.tolist() for subset in combinations(row, n))
    assert best_of_n_score(scores, n) == pytest.approx(expected)


def test_best_of_n_score_of_many_samples_does_not_overflow() -> None:
    samples = torch.arange(1, 5001, dtype=torch.float64)[None]
    assert best_of_n_score(samples, 2500) == pytest.approx(2500 * 5001 / 2501)  # n (m + 1) / (n + 1)


@pytest.mark.parametrize("n", [0, 4])
def test_best_of_n_needs_as_many_samples(n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n}"):
        best_of_n_score(torch.zeros(1, 3), n)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0)
