"""Which models keep documents apart that share a row: tried, not believed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, BloomConfig, OPTConfig

from keel.models.packing import keeps_documents_apart
from tests.worlds import tiny_lm

MODELS: Any = AutoModelForCausalLM  # untyped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "cohere"])
def test_models_that_heed_positions(family: str, dtype: torch.dtype) -> None:
    assert keeps_documents_apart(tiny_lm(family).to(dtype))


def bloom() -> Any:
    return MODELS.from_config(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2))


def opt() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    config = OPTConfig(vocab_size=60, max_position_embeddings=32, word_embed_proj_dim=16, **sizes)
    return MODELS.from_config(config)


@pytest.mark.parametrize("make", [bloom, opt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_do_not_are_found_however_little_they_differ(make: Any, dtype: torch.dtype) -> None:
    """Bloom has no positions but those of its mask, and OPT counts them itself; at their start they differ little."""
    torch.manual_seed(0)
    assert not keeps_documents_apart(make().eval().to(dtype))


def test_a_model_that_takes_no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_lm()
    body = model.model.forward

    def without(input_ids: Tensor, use_cache: bool) -> Any:
        return body(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(model.model, "forward", without)
    assert not keeps_documents_apart(model)


def test_another_kernel_is_tried_anew() -> None:
    model: Any = tiny_lm()
    assert keeps_documents_apart(model)

    def deaf(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    AttentionInterface.register("deaf", deaf)
    model.set_attn_implementation("deaf")
    assert not keeps_documents_apart(model)
