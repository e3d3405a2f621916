"""Products are float32, whoever multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keel.models.kernels import packed_weights, thin_products, use_fast_matmul

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


def linear_layers(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 100, bias=bias), nn.Linear(100, 7, bias=bias))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (3, 40, 48)])
def test_packed_weights_compute_the_same_and_leave_the_layers_as_they_were(bias: bool, shape: tuple[int, ...]) -> None:
    model, states = linear_layers(bias=bias), torch.randn(shape)
    exact = model.double()(states.double())
    model.float()
    use_fast_matmul()
    with packed_weights(model):
        packed = "forward" in vars(model[0])
        torch.testing.assert_close(model(states).double(), exact, atol=1e-5, rtol=1e-5)
    assert packed == (MATMUL.fp32_precision == "bf16")
    assert "forward" not in vars(model[0])
    for layer in model.parameters():
        layer.zero_()
    assert not model(states).any()  # nothing remembers the old weights


@torch.no_grad()
def test_weights_are_not_packed_where_torch_multiplies_or_where_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = linear_layers(bias=True)
    with packed_weights(model):
        assert "forward" not in vars(model[0])
    use_fast_matmul()
    monkeypatch.setattr("keel.models.kernels._PACKED_BYTES", 1000)
    with packed_weights(model):
        assert "forward" not in vars(model[0])


def test_thin_products_give_the_permission_back_after_a_failure() -> None:
    MATMUL.fp32_precision = "bf16"
    seen = []

    def failing() -> None:
        with thin_products():
            seen.append(MATMUL.fp32_precision)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert seen == ["none"]
    assert MATMUL.fp32_precision == "bf16"
