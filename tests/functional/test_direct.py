from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.functional.direct import (
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)

PAIR_LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {
    "dpo": (dpo_loss, {"beta": 0.1}),
    "smoothed": (dpo_loss, {"beta": 0.1, "label_smoothing": 0.2}),
    "ipo": (ipo_loss, {"beta": 0.1}),
    "hinge": (hinge_loss, {"beta": 0.1}),
    "orpo": (orpo_loss, {"lam": 0.3}),
    "simpo": (simpo_loss, {"beta": 2.0, "gamma": 1.0}),
}


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_numbers() -> None:
    assert dpo_loss(number(1.0), number(-2.0), beta=0.1).item() == pytest.approx(0.554355, abs=5e-7)  # h = 0.3
    assert dpo_loss(number(0.0), number(0.0), beta=0.1).item() == pytest.approx(math.log(2))
    smoothed = -(0.8 * math.log(sigmoid(0.3)) + 0.2 * math.log(sigmoid(-0.3)))
    assert dpo_loss(number(1.0), number(-2.0), beta=0.1, label_smoothing=0.2).item() == pytest.approx(smoothed)


def test_ipo_numbers() -> None:
    # beta 0.5 asks for a gap of 1
    assert ipo_loss(number(3.0, 1.0, 0.0), number(1.0, 0.0, 0.0), beta=0.5).tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_hinge_numbers() -> None:
    assert hinge_loss(number(2.0, 4.0), number(-1.0, -8.0), beta=0.1).tolist() == pytest.approx([0.7, 0.0])


def test_kto_numbers() -> None:
    losses = kto_loss(
        number(3.0, 3.0),
        torch.tensor([True, False]),
        kto_reference_point(number(2.0, 0.0)),
        beta=0.5,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    assert losses.tolist() == pytest.approx([1.5 * (1 - sigmoid(1.0)), 0.5 * (1 - sigmoid(-1.0))])


def test_the_reference_point_of_kto_is_a_mean_that_is_never_negative_and_has_no_gradient() -> None:
    ratios = number(-3.0, 1.0).requires_grad_()
    assert kto_reference_point(ratios).item() == 0.0
    point = kto_reference_point(-ratios)
    assert point.item() == pytest.approx(1.0)
    assert not point.requires_grad


def test_orpo_numbers() -> None:
    chosen, rejected = 0.6, 0.2  # odds 1.5 and 0.25: their log-ratio is log 6, and sigmoid(log 6) = 6/7
    loss = orpo_loss(number(math.log(chosen)), number(math.log(rejected)), lam=0.5)
    assert loss.item() == pytest.approx(-math.log(0.6) - 0.5 * math.log(6 / 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_keeps_its_digits_where_a_probability_is_near_one_and_is_finite_at_one(dtype: torch.dtype) -> None:
    gap = 2.6e-7  # p = 1 - gap, between two float32: odds (1 - gap) / gap
    chosen = torch.tensor([math.log1p(-gap), 0.0, -1e4], dtype=dtype, requires_grad=True)
    loss = orpo_loss(chosen, torch.full((3,), -math.log(2), dtype=dtype), lam=1.0)
    assert loss[0].item() == pytest.approx(gap + math.log1p(gap / (1 - gap)), rel=2e-3)
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_simpo_numbers() -> None:
    assert simpo_loss(number(-1.0), number(-2.0), beta=2.0, gamma=1.7).item() == pytest.approx(0.554355, abs=5e-7)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradcheck_pair_losses(name: str) -> None:
    loss, options = PAIR_LOSSES[name]
    chosen, rejected = -0.1 - 3 * torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = (chosen.requires_grad_(), rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: loss(c, r, **options), inputs)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_every_pair_loss_pushes_the_chosen_up_and_all_but_orpo_push_the_rejected_down_as_much(name: str) -> None:
    loss, options = PAIR_LOSSES[name]
    chosen, rejected = number(-1.5).requires_grad_(), number(-1.0).requires_grad_()
    up, down = torch.autograd.grad(loss(chosen, rejected, **options).sum(), (chosen, rejected))
    assert up.item() < 0 < down.item()
    assert (up.item() == pytest.approx(-down.item())) == (name != "orpo")


def test_gradcheck_kto_loss() -> None:
    ratios = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    desirable = torch.tensor([True, False, True, True, False, False])
    assert torch.autograd.gradcheck(
        lambda r: kto_loss(r, desirable, 0.3, beta=0.7, desirable_weight=2.0, undesirable_weight=0.5), (ratios,)
    )


@pytest.mark.parametrize("name", [name for name in PAIR_LOSSES if name != "orpo"])
@pytest.mark.parametrize("gap", [-1e5, 1e5])
def test_extreme_margins_stay_finite(name: str, gap: float) -> None:
    loss, options = PAIR_LOSSES[name]
    chosen = torch.tensor([gap]).requires_grad_()
    value = loss(chosen, torch.zeros(1), **options)
    (gradient,) = torch.autograd.grad(value.sum(), chosen)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(number(0), number(0), beta=0), "beta must be above 0, got 0"),
        (lambda: dpo_loss(number(0), number(0), beta=1, label_smoothing=0.5), "label_smoothing"),
        (lambda: ipo_loss(number(0), number(0), beta=-1), "beta"),
        (lambda: hinge_loss(number(0), number(0), beta=math.nan), "beta"),
        (lambda: simpo_loss(number(0), number(0), beta=1, gamma=-0.1), "must not be negative"),
        (lambda: orpo_loss(number(-1), number(-1), lam=-1), "lam must not be negative"),
        (lambda: orpo_loss(number(-1), number(0.5), lam=1), "at most 0, got 0.5"),
        (lambda: kto_loss(number(0), torch.tensor([True]), 0.0, beta=0), "beta"),
        (lambda: kto_loss(number(0), torch.tensor([1.0]), 0.0, beta=1), "desirable must be bool"),
        (lambda: kto_loss(number(0), torch.tensor([True]), 0.0, beta=1, undesirable_weight=-1), "negative"),
        (lambda: kto_reference_point(number()), "there are none"),
    ],
)
def test_values_out_of_range_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
