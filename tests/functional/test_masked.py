from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.masked import Moments, keep, masked_mean, masked_sum, masked_var, require_prefix, whiten

MASK = torch.tensor([[True, True, False], [True, False, False]])
VALUES = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, -math.inf]], dtype=torch.float64)
GRID = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=torch.float64)
EVERYWHERE = torch.ones_like(GRID, dtype=torch.bool)


def test_masked_reductions_count_only_the_mask() -> None:
    assert masked_sum(VALUES, MASK).item() == 9.0
    assert masked_mean(VALUES, MASK).item() == 3.0
    assert masked_var(VALUES, MASK).item() == pytest.approx(14 / 3)  # (4 + 1 + 9) / 3: population, not / 2


@pytest.mark.parametrize(
    ("reduction", "gradient"),
    [
        (masked_sum, [[1, 1, 0], [1, 0, 0]]),
        (masked_mean, [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0]]),
        (masked_var, [[-4 / 3, -2 / 3, 0], [2, 0, 0]]),  # 2 (x - mean) / n
    ],
)
def test_masked_reductions_leak_nothing_backwards(
    reduction: Callable[[Tensor, Tensor], Tensor], gradient: list[list[float]]
) -> None:
    values = VALUES.clone().requires_grad_()
    (got,) = torch.autograd.grad(reduction(values, MASK), values)
    assert_close(got, torch.tensor(gradient, dtype=torch.float64))


def test_an_empty_mask_has_a_sum_but_no_mean() -> None:
    assert masked_sum(VALUES, torch.zeros_like(MASK)).item() == 0.0
    for reduction in (masked_mean, masked_var):
        with pytest.raises(ValueError, match="counts no entry"):
            reduction(VALUES, torch.zeros_like(MASK))


@pytest.mark.parametrize("mask", [MASK.float(), MASK[:1], MASK.long()])
def test_a_mask_must_be_bool_and_of_the_same_shape(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="need a bool mask"):
        keep(VALUES, mask)
    with pytest.raises(ValueError, match="need a bool mask"):
        Moments.of(VALUES, mask)


def test_require_prefix_names_the_row_with_a_hole() -> None:
    require_prefix(torch.tensor([[True, True], [False, False], [True, False]]))
    with pytest.raises(ValueError, match="row 1 "):
        require_prefix(torch.tensor([[True, False, False], [True, False, True]]))


def test_moments_are_those_of_the_standard_library() -> None:
    numbers = [3.0, -1.0, 4.0, 1.5, 9.25]
    moments = Moments.of(torch.tensor(numbers))
    assert moments.count == 5
    assert moments.mean == pytest.approx(statistics.fmean(numbers))
    assert moments.var == pytest.approx(statistics.pvariance(numbers))
    assert moments.std == pytest.approx(statistics.pstdev(numbers))
    assert Moments.of(VALUES, MASK).mean == 3.0


@pytest.mark.parametrize("cut", range(6))
def test_merged_moments_are_those_of_the_union(cut: int) -> None:
    numbers = [1e8 + 1, 1e8 + 2, 1e8 + 4, 1e8 - 3, 1e8]
    values = torch.tensor(numbers, dtype=torch.float64)
    merged = Moments.of(values[:cut]).merge(Moments.of(values[cut:]))
    assert merged.count == 5
    assert merged.mean == pytest.approx(1e8 + 0.8, rel=1e-12)
    assert merged.var == pytest.approx(statistics.pvariance([1, 2, 4, -3, 0]), rel=1e-6)


def test_the_empty_set_has_no_variance() -> None:
    assert Moments.empty().merge(Moments.empty()) == Moments.empty()
    with pytest.raises(ValueError, match="no variance"):
        _ = Moments.empty().std


def test_whiten_with_the_mean_kept_gives_the_numbers_of_the_definition() -> None:
    expected = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
    whitened = whiten(GRID, EVERYWHERE, center=False)
    assert_close(whitened, torch.tensor(expected, dtype=torch.float64), atol=5e-5, rtol=0)


def test_mistake_1_whitening_centres() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    whitened = whiten(GRID.masked_fill(~mask, math.nan), mask)
    inside = whitened[mask].tolist()
    assert statistics.fmean(inside) == pytest.approx(0, abs=1e-12)
    assert statistics.pstdev(inside) == pytest.approx(1, abs=1e-6)
    assert whitened[~mask].tolist() == [0.0, 0.0, 0.0]


def test_whiten_can_centre_without_scaling_and_do_neither() -> None:
    assert_close(whiten(GRID, EVERYWHERE, scale=False), GRID - 1.6)
    assert_close(whiten(GRID, EVERYWHERE, center=False, scale=False), GRID)


def test_whiten_with_the_batch_moments_does_not_depend_on_the_cut() -> None:
    whole = whiten(GRID, EVERYWHERE)
    moments = Moments.of(GRID)
    parts = [whiten(GRID[i : i + 1], EVERYWHERE[:1], moments=moments) for i in range(3)]
    assert_close(torch.cat(parts), whole)
    nothing = whiten(GRID[:1], ~EVERYWHERE[:1], moments=moments)
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]


def test_whiten_of_a_constant_is_zero() -> None:
    assert whiten(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).abs().max().item() < 1e-3
