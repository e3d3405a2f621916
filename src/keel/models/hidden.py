"""Last hidden states: what every head reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def hidden_size(backbone: nn.Module) -> int:
    """Width of the last hidden state."""
    config: Any = backbone.config
    return int(config.get_text_config().hidden_size)


def last_hidden(backbone: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    """Hidden states [B, L, H] that the head would read; the model hears of `options`."""
    body: Any = backbone.base_model
    hidden: Tensor = body(input_ids=tokens, use_cache=False, **options).last_hidden_state
    return hidden
