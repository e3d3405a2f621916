"""Small models with adapters, to be looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keel.models.adapters import (
    AdapterSpec,
    adapter_parameters,
    add_adapter,
)
from tests.worlds import tiny_lm

FAMILIES = ("llama", "gpt2", "gemma2")
SPEC = AdapterSpec(rank=3, alpha=6.0)
TOKENS = torch.tensor([[5, 6, 7, 250, 9], [1, 2, 3, 4, 5]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=TOKENS).logits
    return found


def shaken(model: nn.Module, name: str, seed: int = 0) -> None:
    """As if the adapter had been trained: its B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter_parameters(model, name):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def with_adapter(family: str = "llama", *, seed: int = 0, spec: AdapterSpec = SPEC) -> Any:
    model = tiny_lm(family)
    add_adapter(model, "a", spec)
    shaken(model, "a", seed)
    return model


def differ(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) > 0.1
