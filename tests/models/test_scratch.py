from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from keel.errors import UserError
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm

SIZES: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "vocab": 30, "context": 20, "eos_id": 3}


def made(seed: int, intermediate: int | None = None) -> nn.Module:
    return scratch_causal_lm(**SIZES, intermediate=intermediate, seed=seed)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = made(5)
    torch.manual_seed(2)
    torch.rand(3)
    again, other = made(5), made(6)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    assert not torch.equal(first.state_dict()["lm_head.weight"], other.state_dict()["lm_head.weight"])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    made(5)
    assert torch.equal(torch.rand(1), expected)


def test_the_architecture_is_the_one_asked_for() -> None:
    model: Any = made(0)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert (config.vocab_size, config.max_position_embeddings, config.eos_token_id) == (30, 20, 3)
    assert config.intermediate_size == 42  # 8/3 of 16
    wide: Any = made(0, intermediate=50)
    assert wide.config.intermediate_size == 50
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    Policy(model)  # its head is one that Keel knows


def test_the_attention_kernel_is_the_one_asked_for() -> None:
    shape: Any = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": None, "vocab": 50, "context": 32}
    eager: Any = scratch_causal_lm(**shape, eos_id=0, seed=0, attention="eager")
    assert eager.config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"model\.attention: flash_attention_2 cannot be used here"):
        scratch_causal_lm(**shape, eos_id=0, seed=0, attention="flash_attention_2")
