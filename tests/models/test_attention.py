"""Keel's attention computes what torch's own does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

from keel.models.attention import ATTENTION, attention, use_attention
from tests.worlds import tiny_lm


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
    found, _ = attention(torch.nn.Module(), query, key, value, mask[:, None] if masked else None)
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
    found, _ = attention(torch.nn.Module(), query, key, value, added)
    torch.testing.assert_close(found, textbook(query, key, value, mask))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_model_computes_the_same_with_it(family: str) -> None:
    model: Any = tiny_lm(family)
    tokens = torch.arange(1, 25).reshape(2, 12)
    expected = model(input_ids=tokens).logits
    use_attention(model)
    assert model.config._attn_implementation == ATTENTION
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_was_chosen_stays() -> None:
    model: Any = tiny_lm()
    model.set_attn_implementation("eager")
    use_attention(model)
    assert model.config._attn_implementation == "eager"


def test_an_architecture_that_asks_for_torch_by_name_stays_as_it_is() -> None:
    """Under another name DeepSeek's sparse attention would silently see every token."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    with torch.device("meta"):
        model: Any = DeepseekV32ForCausalLM(DeepseekV32Config(vocab_size=60, **sizes))
    use_attention(model)
    assert model.config._attn_implementation == "sdpa"
