"""Products are float32, whoever multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.models.kernels import use_fast_matmul

BACKENDS: Any = torch.backends  # untyped
MATMUL = BACKENDS.mkldnn.matmul


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "none"
    yield
    MATMUL.fp32_precision = before


@pytest.mark.parametrize("shape", [(64, 256, 688), (33, 100, 257), (700, 1024, 96)])
def test_products_are_float32(shape: tuple[int, int, int]) -> None:
    """As near to the exact product as float32 is, and not as bfloat16, wherever the permission to round is given."""
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact = left.double() @ right.double()
    rounded = (left.bfloat16().double() @ right.bfloat16().double() - exact).abs().max()
    use_fast_matmul()
    assert (left @ right - exact).abs().max() < rounded / 1000


def test_the_permission_is_taken_back_where_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Tensor.__matmul__

    def rounding(left: Tensor, right: Tensor) -> Tensor:
        if left.dtype == torch.float32 and MATMUL.fp32_precision == "bf16":
            return product(left.bfloat16(), right.bfloat16()).float()
        return product(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", rounding)
    assert not use_fast_matmul()
    assert MATMUL.fp32_precision == "none"


def test_a_precision_that_was_chosen_stays() -> None:
    MATMUL.fp32_precision = "ieee"
    assert not use_fast_matmul()
    assert MATMUL.fp32_precision == "ieee"
