"""A Llama from nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from keel.errors import UserError, first_line
from keel.models.attention import use_attention


def scratch_config(
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int | None,
    vocab: int,
    context: int,
    eos_id: int | None = None,
) -> LlamaConfig:
    """Its sizes: embeddings tied, an MLP of 8/3 of `hidden` unless it is given."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate or 8 * hidden // 3,
        vocab_size=vocab,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
    )


def scratch_causal_lm(
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int | None,
    vocab: int,
    context: int,
    eos_id: int,
    seed: int,
    attention: str = "auto",
) -> nn.Module:
    """Random weights, a function of `seed` alone; embeddings tied; float32.

    Raises UserError where the attention kernel is not to be had.
    """
    config = scratch_config(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        vocab=vocab,
        context=context,
        eos_id=eos_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    if attention == "auto":
        use_attention(model)
    else:
        try:
            model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            raise UserError(f"model.attention: {attention} cannot be used here: {first_line(error)}") from None
    model.eval()
    made: nn.Module = model
    return made
