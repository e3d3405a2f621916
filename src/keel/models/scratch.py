"""A Llama from nothing."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def scratch_causal_lm(
    *, hidden: int, layers: int, heads: int, intermediate: int | None, vocab: int, context: int, eos_id: int, seed: int
) -> nn.Module:
    """Random weights, a function of `seed` alone; embeddings tied; float32."""
    config = LlamaConfig(
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = LlamaForCausalLM(config)
    model.eval()
    return model
