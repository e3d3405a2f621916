"""Which models keep rows apart that lie side by side: tried, not believed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, MistralConfig, OPTConfig

from keel.models.attention import ATTENTION, use_attention
from keel.models.hidden import last_hidden
from keel.models.packing import longest_kept_apart, states_at
from tests.worlds import tiny_lm

MODELS: Any = AutoModelForCausalLM  # untyped


def given(model: Any) -> Any:
    """The model with Keel's attention, if it takes it."""
    use_attention(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "cohere"])
def test_models_that_do(family: str, dtype: torch.dtype) -> None:
    assert longest_kept_apart(given(tiny_lm(family).to(dtype))) == math.inf


@pytest.mark.parametrize("window", [4, 6])
def test_within_a_sliding_window(window: int) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    model = MODELS.from_config(MistralConfig(vocab_size=60, sliding_window=window, num_key_value_heads=1, **sizes))
    assert longest_kept_apart(given(model.eval())) == window


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_not_with_a_kernel_that_was_chosen(kernel: str) -> None:
    model: Any = tiny_lm()
    model.set_attn_implementation(kernel)
    assert longest_kept_apart(model) == 0


def bloom() -> Any:
    return MODELS.from_config(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2))


def opt() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    config = OPTConfig(vocab_size=60, max_position_embeddings=32, word_embed_proj_dim=16, **sizes)
    return MODELS.from_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_without_positions(dtype: torch.dtype) -> None:
    """Bloom has none but those of its mask; at its start it differs little."""
    torch.manual_seed(0)
    assert longest_kept_apart(given(bloom().eval().to(dtype))) == 0


@torch.no_grad()
def test_a_model_that_counts_positions_unless_they_are_given() -> None:
    torch.manual_seed(0)
    model = given(opt().eval().double())
    tokens, lengths = torch.arange(2, 23).reshape(3, 7), torch.tensor([3, 7, 4])
    rows = torch.arange(3)
    found = states_at(model, tokens, lengths, rows, lengths - 1)
    alone = torch.stack([last_hidden(model, tokens[row : row + 1, : lengths[row]])[0, -1] for row in rows.tolist()])
    assert longest_kept_apart(model) == math.inf
    torch.testing.assert_close(found, alone)


def test_a_model_that_takes_no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = given(tiny_lm())
    body = model.model.forward

    def without(input_ids: Tensor, use_cache: bool) -> Any:
        return body(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(model.model, "forward", without)
    assert longest_kept_apart(model) == 0


def test_a_model_that_does_not_tell_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = given(tiny_lm())
    body = model.model.forward

    def silent(**options: Any) -> Any:
        options.pop("flat", None)
        return body(**options)

    monkeypatch.setattr(model.model, "forward", silent)
    assert model.config._attn_implementation == ATTENTION
    assert longest_kept_apart(model) == 0
