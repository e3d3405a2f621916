"""Adapters against weights that were edited by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.models.adapters import (
    AdapterSpec,
    active_adapter,
    adapter_parameters,
    add_adapter,
    merge_adapter,
    merged_state,
    using,
)
from tests.models.adapted import FAMILIES, SPEC, TOKENS, differ, logits, shaken, with_adapter
from tests.worlds import tiny_lm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing(family: str, dtype: torch.dtype) -> None:
    model = tiny_lm(family).to(dtype)
    before = logits(model)
    add_adapter(model, "a", SPEC)
    assert torch.equal(logits(model), before)
    assert {weight.dtype for weight in adapter_parameters(model, "a")} == {torch.float32}
    with using(model, None):
        assert torch.equal(logits(model), before)
    shaken(model, "a")
    assert differ(logits(model), before)


def test_its_start_is_a_function_of_the_seed_alone() -> None:
    def start(seed: int, global_seed: int) -> list[Tensor]:
        model = tiny_lm()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            add_adapter(model, "a", SPEC, seed=seed)
            assert torch.equal(torch.get_rng_state(), state)
        return [weight.detach() for weight in adapter_parameters(model, "a")]

    first, again, other = start(1, 1), start(1, 2), start(2, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for a, b in zip(first, other, strict=True):
        assert torch.equal(a, b) == (not a.any())  # B is 0, A another one
    largest = [float(a.abs().max()) * math.sqrt(a.shape[1]) for a in first if a.any()]
    assert len(largest) == len(first) / 2
    assert all(0.7 < bound <= 1 for bound in largest)  # uniform, within 1 / sqrt(width)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_w_plus_alpha_over_rank_times_b_a(family: str) -> None:
    model = with_adapter(family)
    by_hand: Any = tiny_lm(family)
    layers = {key: part for key, part in model.named_modules() if hasattr(part, "lora_A") and "lora" not in key}
    assert len(layers) == {"llama": 14, "gpt2": 8, "gemma2": 14}[family]  # the head is none of them
    with torch.no_grad():
        for key, layer in layers.items():
            change = 2.0 * layer.lora_B["a"].weight @ layer.lora_A["a"].weight  # alpha / rank = 2
            by_hand.get_submodule(key).weight += change.T if family == "gpt2" else change  # Conv1D is transposed
    torch.testing.assert_close(logits(model), logits(by_hand), atol=1e-4, rtol=1e-4)
    plain = tiny_lm(family)
    assert plain.state_dict().keys() == merged_state(model, "a").keys()
    plain.load_state_dict(merged_state(model, "a"))
    torch.testing.assert_close(logits(plain), logits(by_hand), atol=1e-5, rtol=1e-5)
    with using(model, None):
        assert torch.equal(logits(model), logits(tiny_lm(family)))


def test_merging_gives_back_an_ordinary_model() -> None:
    model, expected = with_adapter("gpt2"), merged_state(with_adapter("gpt2"), "a")
    merge_adapter(model, "a")
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in expected.items())
    assert [type(part) for part in model.modules()] == [type(part) for part in tiny_lm("gpt2").modules()]
    assert all(weight.requires_grad for weight in model.parameters())
    add_adapter(model, "a", SPEC)  # nothing of the old one is left


def test_only_the_targets_are_adapted() -> None:
    model = with_adapter(spec=AdapterSpec(2, 2.0, ("q_proj", "mlp.down_proj")))
    adapted = {key.rsplit(".", 2)[-2] for key, _ in model.named_modules() if key.endswith("lora_A")}
    assert adapted == {"q_proj", "down_proj"}
    assert len(adapter_parameters(model, "a")) == 8  # two layers


# --- several on one body ---


def test_using_nests_and_restores() -> None:
    model = with_adapter()
    add_adapter(model, "b", AdapterSpec(2, 2.0, ("q_proj",)))
    shaken(model, "b", 1)
    assert active_adapter(model) == "b"
    results = {}
    for name in ("a", "b", None):
        with using(model, name):
            assert active_adapter(model) == name
            results[name] = logits(model)
    assert differ(results["a"], results["b"])
    assert differ(results["b"], results[None])
    with using(model, "a"):
        with using(model, None), using(model, "b"):
            assert torch.equal(logits(model), results["b"])
        assert torch.equal(logits(model), results["a"])
        with pytest.raises(KeyError), using(model, None):
            raise KeyError
        assert torch.equal(logits(model), results["a"])
    assert torch.equal(logits(model), results["b"])
    with pytest.raises(AssertionError, match="there is no adapter c"), using(model, "c"):
        pass
    with pytest.raises(AssertionError, match="there is no adapter a"), using(tiny_lm(), "a"):
        pass


def test_two_adapters_are_as_if_each_were_alone() -> None:
    alone = {seed: logits(with_adapter(seed=seed)) for seed in (3, 4)}
    model = with_adapter(seed=3)
    add_adapter(model, "b", SPEC)
    shaken(model, "b", 4)
    for name, seed in (("a", 3), ("b", 4)):
        with using(model, name):
            assert torch.equal(logits(model), alone[seed])
    assert not {id(w) for w in adapter_parameters(model, "a")} & {id(w) for w in adapter_parameters(model, "b")}


def test_only_trained_adapters_have_gradients() -> None:
    model = with_adapter()
    add_adapter(model, "frozen", SPEC, trained=False)
    shaken(model, "frozen")
    with using(model, "a"):
        model(input_ids=TOKENS).logits.sum().backward()
    mine = {id(weight) for weight in adapter_parameters(model, "a")}
    body = list(model.base_model.parameters())
    assert {id(weight) for weight in body if weight.requires_grad} == mine
    assert all((weight.grad is not None) == (id(weight) in mine) for weight in body)
