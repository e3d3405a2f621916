from __future__ import annotations

from pathlib import Path

import pytest

from keel.config.model import LoRAConfig
from keel.doctor.shapes import adapter_numbers, read_config, shape_of, without_weights
from keel.errors import UserError
from keel.models.adapters import AdapterSpec, adapter_parameters, add_adapter, body_of
from tests.worlds import save_tiny_lm, tiny_classifier, tiny_config, tiny_encoder, tiny_lm

FAMILIES = ("llama", "gpt2", "qwen3", "gemma3")


def test_a_llama_by_hand() -> None:
    """Two embeddings of 300 x 16; of a block q, k, v, o, an MLP of three and two norms; one norm more."""
    shape = shape_of(without_weights(tiny_config("llama")))
    block = 256 + 128 + 128 + 256 + 3 * 16 * 24 + 2 * 16
    assert (shape.block, shape.root, shape.weights) == (block, 9616, 2 * block + 9616)
    assert (shape.layers, shape.hidden, shape.heads, shape.vocabulary) == (2, 16, 2, 300)
    assert (shape.queries, shape.keys, shape.intermediate, shape.normed, shape.gated) == (16, 8, 24, 32, True)


def test_families_differ_in_their_norms_and_their_mlp() -> None:
    shapes = {family: shape_of(without_weights(tiny_config(family))) for family in FAMILIES}
    assert (shapes["gpt2"].intermediate, shapes["gpt2"].gated, shapes["gpt2"].keys) == (64, False, 16)
    assert shapes["qwen3"].normed == 2 * 16 + 16 + 8  # one of queries and one of keys
    assert shapes["gemma3"].normed == 4 * 16 + 16 + 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_that_of_the_real_model(family: str) -> None:
    model = tiny_lm(family)
    shape = shape_of(without_weights(tiny_config(family)))
    assert shape.weights == sum(weight.numel() for weight in model.parameters())
    assert shape.weights == shape.root + 2 * shape.block
    config = tiny_config(family)
    config.num_labels = 1
    counted = shape_of(without_weights(config, classifier=True)).weights
    assert counted == sum(weight.numel() for weight in tiny_classifier(family).parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_adapters_are_those_that_are_made(family: str, targets: str) -> None:
    chosen = "all-linear" if targets == "all-linear" else ("c_attn",) if family == "gpt2" else ("q_proj", "mlp.up_proj")
    model = tiny_lm(family)
    add_adapter(model, "a", AdapterSpec(4, 8.0, chosen))
    made = sum(weight.numel() for weight in adapter_parameters(body_of(model), "a"))
    assert (
        adapter_numbers(without_weights(tiny_config(family)), LoRAConfig.model_validate({"rank": 4, "targets": chosen}))
        == made
        > 0
    )


def test_an_encoder_has_a_shape_too() -> None:
    model = tiny_encoder("bert")
    assert shape_of(model).weights == sum(weight.numel() for weight in model.parameters())


def test_what_cannot_be_looked_at_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the configuration of owner/not-fetched cannot be read here"):
        read_config("owner/not-fetched")
    with pytest.raises(UserError, match="MambaForCausalLM has no attention whose sizes are known"):
        shape_of(without_weights(tiny_config("mamba")))
    assert read_config(str(save_tiny_lm(tmp_path / "model"))).model_type == "llama"
