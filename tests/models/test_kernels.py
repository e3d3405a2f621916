"""The kernels of a CPU compute what torch's own do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.models.kernels import SHORT_ATTENTION, short_attention, use_fast_matmul, use_short_attention
from tests.worlds import tiny_lm

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


def textbook(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k / sqrt d) v of each head, a loop over heads; query heads share key heads in order."""
    groups = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // groups].transpose(1, 2) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask, float("-inf"))
        heads.append(scores.softmax(dim=-1) @ value[:, head // groups])
    return torch.stack(heads, dim=2)


@pytest.mark.parametrize("steps", [1, 5, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_short_attention_is_attention(steps: int, masked: bool, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    keys = steps if not masked else 9
    query, key, value = random(3, 4, steps, 8), random(3, key_heads, keys, 8), random(3, key_heads, keys, 8)
    mask = torch.ones(3, steps, keys, dtype=torch.bool).tril()
    if masked:
        mask = torch.rand(3, steps, keys, generator=generator) < 0.5
        mask[..., 0] = True
    found, _ = short_attention(torch.nn.Module(), query, key, value, mask[:, None] if masked else None)
    expected = textbook(query, key, value, mask)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((result * weights).sum(), (query, key, value)) for result in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_mask_to_be_added_is_added() -> None:
    query, key, value = (torch.randn(2, 2, 3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(2, 3, 3, dtype=torch.bool).tril()
    added = torch.zeros(2, 1, 3, 3, dtype=torch.float64).masked_fill(~mask[:, None], float("-inf"))
    found, _ = short_attention(torch.nn.Module(), query, key, value, added)
    torch.testing.assert_close(found, textbook(query, key, value, mask))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_model_computes_the_same_with_it(family: str) -> None:
    model: Any = tiny_lm(family)
    tokens = torch.arange(1, 25).reshape(2, 12)
    expected = model(input_ids=tokens).logits
    use_short_attention(model)
    assert model.config._attn_implementation == SHORT_ATTENTION
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_was_chosen_stays() -> None:
    model: Any = tiny_lm()
    model.set_attn_implementation("eager")
    use_short_attention(model)
    assert model.config._attn_implementation == "eager"
