from __future__ import annotations

import math
from itertools import accumulate, permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.preference import (
    accept_loss,
    bradley_terry_loss,
    bradley_terry_probability,
    increasing,
    ordinal_loss,
    plackett_luce_loss,
)

ZERO = torch.zeros(1, dtype=torch.float64)


def pair_loss(difference: float, **options: Any) -> float:
    return bradley_terry_loss(ZERO + difference, ZERO, **options).item()


@pytest.mark.parametrize(
    ("difference", "probability", "loss"),
    [(3, 0.95257, 0.048587), (0.3, 0.574443, 0.554355), (4.5, 0.989013, 0.0110477), (-0.5, 0.377541, 0.974077)],
)
def test_bradley_terry_numbers(difference: float, probability: float, loss: float) -> None:
    assert bradley_terry_probability(ZERO + difference, ZERO).item() == pytest.approx(probability, abs=5e-6)
    assert pair_loss(difference) == pytest.approx(loss, abs=5e-7)


def test_dpo_at_h_is_the_loss_of_a_difference_h() -> None:
    assert pair_loss(0.3) == pytest.approx(0.554355, abs=5e-7)


def test_bradley_terry_gradient_pushes_the_chosen_up() -> None:
    chosen, rejected = (ZERO - 0.5).requires_grad_(), ZERO.clone().requires_grad_()
    gradients = torch.autograd.grad(bradley_terry_loss(chosen, rejected).sum(), (chosen, rejected))
    assert [g.item() for g in gradients] == pytest.approx([-0.622459, 0.622459], abs=5e-7)


def test_annotator_temperature_divides_the_difference() -> None:
    assert bradley_terry_probability(ZERO + 3, ZERO, temperature=2.0).item() == pytest.approx(1 / (1 + math.exp(-1.5)))
    with pytest.raises(ValueError, match="temperature"):
        bradley_terry_probability(ZERO, ZERO, temperature=0)


def test_erratum_10_the_loss_is_not_largest_near_zero() -> None:
    assert pair_loss(-3) == pytest.approx(3.048587, abs=5e-7)
    assert pair_loss(-3) > pair_loss(0) == pytest.approx(math.log(2))


def test_erratum_10_scores_are_known_up_to_a_constant_of_each_prompt() -> None:
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.linspace(-5, 5, 6, dtype=torch.float64)  # another constant for every prompt
    assert_close(bradley_terry_loss(chosen + shift, rejected + shift), bradley_terry_loss(chosen, rejected))


def test_margin_is_taken_off_the_difference() -> None:
    assert pair_loss(3, margin=2.7) == pytest.approx(0.554355, abs=5e-7)
    margins = torch.tensor([0.0, 1.0], dtype=torch.float64)
    losses = bradley_terry_loss(torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), margin=margins)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log(2)])


@pytest.mark.parametrize("difference", [-2.0, 0.0, 1.3])
def test_noise_and_smoothing_by_hand(difference: float) -> None:
    right, wrong = 1 / (1 + math.exp(-difference)), 1 / (1 + math.exp(difference))
    noise = -math.log(0.9 * right + 0.1 * wrong)
    smoothing = -(0.9 * math.log(right) + 0.1 * math.log(wrong))
    assert pair_loss(difference, flip_probability=0.1) == pytest.approx(noise)
    assert pair_loss(difference, label_smoothing=0.1) == pytest.approx(smoothing)


def minimiser(true_difference: float, **options: float) -> float:
    """The difference that the expected loss prefers when a tenth of the labels are flipped, by a fine grid."""
    wins = 0.9 * torch.sigmoid(torch.tensor(true_difference)) + 0.1 * torch.sigmoid(torch.tensor(-true_difference))
    grid = torch.arange(0, 4, 0.001, dtype=torch.float64)
    zeros = torch.zeros_like(grid)
    expected = wins * bradley_terry_loss(grid, zeros, **options)
    expected += (1 - wins) * bradley_terry_loss(zeros, grid, **options)
    return float(grid[expected.argmin()])


def test_noise_recovers_the_difference_and_smoothing_shrinks_it() -> None:
    assert minimiser(2.0, flip_probability=0.1) == pytest.approx(2.0, abs=2e-3)
    assert minimiser(2.0, label_smoothing=0.1) == pytest.approx(1.0652, abs=2e-3)


@pytest.mark.parametrize("options", [{}, {"flip_probability": 0.2}, {"label_smoothing": 0.2}, {"margin": 0.5}])
def test_gradcheck_bradley_terry_loss(options: dict[str, float]) -> None:
    chosen, rejected = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = (chosen.requires_grad_(), rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry_loss(c, r, **options), inputs)


@pytest.mark.parametrize("options", [{}, {"flip_probability": 0.1}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("difference", [-1e4, 1e4])
def test_extreme_differences_stay_finite(difference: float, options: dict[str, float]) -> None:
    chosen = torch.tensor([difference]).requires_grad_()
    loss = bradley_terry_loss(chosen, torch.zeros(1), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip_probability": 0.1, "label_smoothing": 0.1}, "exclude each other"),
        ({"flip_probability": 0.1, "margin": 0.5}, "exclude each other"),
        ({"label_smoothing": 0.1, "margin": torch.tensor([0.0, 0.5])}, "exclude each other"),
        ({"flip_probability": 0.5}, r"in \[0, 0.5\)"),
        ({"label_smoothing": -0.1}, r"in \[0, 0.5\)"),
        ({"margin": -0.1}, "must not be negative"),
        ({"margin": torch.tensor([math.nan])}, "must not be negative"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry_loss(torch.ones(2), torch.zeros(2), **options)


def plackett_luce(scores: Tensor, ranks: list[list[int]] | None = None) -> Tensor:
    """Without ranks the scores stand in the order of preference; nothing is padded."""
    in_order = torch.arange(scores.shape[1]).expand_as(scores)
    return plackett_luce_loss(
        scores, in_order if ranks is None else torch.tensor(ranks), torch.ones_like(scores).bool()
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_plackett_luce_on_scores_2_1_0() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert plackett_luce(scores).item() == pytest.approx(0.720868, abs=5e-7)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores = random(6, 2, seed=3)
    assert_close(plackett_luce(scores), bradley_terry_loss(scores[:, 0], scores[:, 1]))
    assert_close(plackett_luce(scores, [[2, 1]] * 6), bradley_terry_loss(scores[:, 1], scores[:, 0]))


def test_plackett_luce_by_drawing_without_replacement() -> None:
    scores = random(3, 5, seed=4)
    for row, loss in zip(scores.tolist(), plackett_luce(scores).tolist(), strict=True):
        likelihood = 1.0
        for place in range(5):
            likelihood *= math.exp(row[place]) / sum(math.exp(s) for s in row[place:])
        assert loss == pytest.approx(-math.log(likelihood))


def test_the_likelihoods_of_all_rankings_add_up_to_one() -> None:
    scores = random(1, 4, seed=5)
    orders = list(permutations(range(4)))
    ranks = [[order.index(item) for item in range(4)] for order in orders]
    assert float((-plackett_luce(scores.expand(24, 4), ranks)).exp().sum()) == pytest.approx(1.0)
    tenfold = [[10 * rank - 7 for rank in row] for row in ranks]  # only their order counts
    assert_close(plackett_luce(scores.expand(24, 4), tenfold), plackett_luce(scores.expand(24, 4), ranks))


def test_a_tied_pair_is_half_of_each() -> None:
    scores = random(5, 2, seed=6)
    both = bradley_terry_loss(scores[:, 0], scores[:, 1]) + bradley_terry_loss(scores[:, 1], scores[:, 0])
    assert_close(plackett_luce(scores, [[1, 1]] * 5), both / 2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("ranks", [[1, 1, 2, 3], [1, 2, 2, 4], [3, 1, 3, 3], [2, 2, 1, 1], [1, 1, 1, 1], [4, 3, 2, 1]])
def test_ties_are_breslows(ranks: list[int]) -> None:
    """Item by item: each of several equals is chosen from all that are no better; those in the last place weigh
    (m - 1) / m, so that any ranking of four holds three choices."""
    (scores,) = random(1, 4, seed=7).tolist()
    expected = choices = 0.0
    for score, rank in zip(scores, ranks, strict=True):
        among = sum(math.exp(other) for other, beside in zip(scores, ranks, strict=True) if beside >= rank)
        last = ranks.count(rank) if rank == max(ranks) else 0
        weight = (last - 1) / last if last else 1.0
        expected -= weight * math.log(math.exp(score) / among)
        choices += weight
    assert choices == pytest.approx(3)
    assert plackett_luce(torch.tensor([scores], dtype=torch.float64), [ranks]).item() == pytest.approx(expected)


def test_equal_scores_are_where_ties_want_them() -> None:
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(plackett_luce(scores, [[1, 1, 1]]).sum(), scores)
    assert_close(gradient, torch.zeros_like(gradient))


def test_what_pads_a_ranking_changes_nothing() -> None:
    scores = random(2, 3, seed=8)
    padded = torch.cat([scores, torch.tensor([[math.nan, math.inf], [-1e9, 5.0]], dtype=torch.float64)], dim=1)
    padded.requires_grad_()
    ranks = torch.tensor([[1, 2, 2, 0, 9], [3, 1, 2, -5, 2]])
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    losses = plackett_luce_loss(padded, ranks, mask)
    assert_close(losses, plackett_luce_loss(scores, ranks[:, :3], mask[:, :3]))
    (gradient,) = torch.autograd.grad(losses.sum(), padded)
    assert gradient.isfinite().all()
    assert (gradient[:, 3:] == 0).all()
    with pytest.raises(ValueError, match="a ranking without items"):
        plackett_luce_loss(scores, ranks[:, :3], torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [2, 1, 2, 1], [1, 1, 3, 3]])
def test_gradcheck_plackett_luce_loss(ranks: list[int]) -> None:
    assert torch.autograd.gradcheck(lambda s: plackett_luce(s, [ranks] * 2), (random(2, 4, seed=9).requires_grad_(),))


# --- ratings and labels ---


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


CUTS = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.float64)


def test_ordinal_probabilities_by_hand() -> None:
    """At a score of 0.7 and an annotator 0.3 more lenient: r = 1."""
    shares = [sigmoid(-2.5), sigmoid(-0.8) - sigmoid(-2.5), sigmoid(1) - sigmoid(-0.8), 1 - sigmoid(1)]
    scores = torch.full((4,), 0.7, dtype=torch.float64)
    losses = ordinal_loss(scores, torch.arange(4), CUTS, offsets=torch.full((4,), 0.3, dtype=torch.float64))
    assert losses.tolist() == pytest.approx([-math.log(share) for share in shares])
    assert float((-losses).exp().sum()) == pytest.approx(1.0)


def test_ordinal_of_two_levels_is_acceptance() -> None:
    scores, accepted = random(6, seed=10), torch.tensor([True, False] * 3)
    assert_close(ordinal_loss(scores, accepted.long(), CUTS[:1]), accept_loss(scores, accepted, -1.5))


def test_acceptance_by_hand() -> None:
    losses = accept_loss(torch.tensor([1.2, 1.2]), torch.tensor([True, False]), 0.7)
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(0.5)), -math.log(sigmoid(-0.5))])


@pytest.mark.parametrize("score", [-1e3, 1e3])
def test_extreme_ratings_stay_finite(score: float) -> None:
    scores = torch.full((4,), score, requires_grad=True)
    cuts = torch.tensor([0.0, 1e-6, 1.0])
    losses = ordinal_loss(scores, torch.arange(4), cuts)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_gradcheck_ordinal_and_accept_loss() -> None:
    scores, offsets = random(8, seed=11).requires_grad_(), random(8, seed=12).requires_grad_()
    levels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    inputs = (scores, CUTS.clone().requires_grad_(), offsets)
    assert torch.autograd.gradcheck(lambda s, c, o: ordinal_loss(s, levels, c, offsets=o), inputs)
    threshold = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, c: accept_loss(s, levels > 1, c), (scores, threshold))


@pytest.mark.parametrize(
    ("levels", "cuts", "message"),
    [([0, 4], [0.0, 1.0, 2.0], r"0 ... 3, got \[0, 4\]"), ([-1], [0.0], "0 ... 1"), ([0], [0.0, 0.0], "must increase")],
)
def test_levels_and_cuts_out_of_order_are_refused(levels: list[int], cuts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ordinal_loss(torch.zeros(len(levels)), torch.tensor(levels), torch.tensor(cuts))


def test_free_numbers_become_increasing_ones() -> None:
    free = torch.tensor([-2.0, 0.0, -30.0, 3.0], dtype=torch.float64)
    steps = [math.log1p(math.exp(value)) for value in free.tolist()[1:]]
    assert increasing(free).tolist() == pytest.approx(list(accumulate(steps, initial=-2.0)))
    assert (increasing(random(50, seed=13) * 10).diff() > 0).all()
    assert torch.autograd.gradcheck(increasing, (free.requires_grad_(),))
