from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.preference import bradley_terry_loss, bradley_terry_probability, plackett_luce_loss

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


def test_plackett_luce_on_scores_2_1_0() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert plackett_luce_loss(scores).item() == pytest.approx(0.720868, abs=5e-7)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_close(plackett_luce_loss(scores), bradley_terry_loss(scores[:, 0], scores[:, 1]))


def test_plackett_luce_by_drawing_without_replacement() -> None:
    scores: Tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for row, loss in zip(scores.tolist(), plackett_luce_loss(scores).tolist(), strict=True):
        likelihood = 1.0
        for place in range(5):
            likelihood *= math.exp(row[place]) / sum(math.exp(s) for s in row[place:])
        assert loss == pytest.approx(-math.log(likelihood))
    assert torch.autograd.gradcheck(plackett_luce_loss, (scores.requires_grad_(),))
