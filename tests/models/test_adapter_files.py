"""Adapters in files: read by peft alone, and peft's read; what would be misread is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from keel.batching import pad_rows
from keel.build.workbench import load_renderer
from keel.errors import UserError
from keel.models.adapters import (
    AdapterSpec,
    active_adapter,
    adapter_tensors,
    add_adapter,
    load_adapter,
    save_adapter,
)
from keel.models.load import classifier_on, context_length, load_causal_lm, load_classifier
from keel.models.reward import RewardModel
from tests.models.adapted import FAMILIES, SPEC, differ, logits, shaken, with_adapter
from tests.worlds import random_rows, save_tiny_lm, tiny_classifier, tiny_codec, tiny_lm

PEFT: Any = PeftModel  # untyped
POLICIES: Any = AutoModelForCausalLM
CLASSIFIERS: Any = AutoModelForSequenceClassification


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_alone_reads_a_saved_policy_adapter(family: str, tmp_path: Path) -> None:
    model = with_adapter(family)
    tiny: Any = tiny_lm(family)
    tiny.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    save_adapter(model, "a", tmp_path / "adapter", base="../base", tensors=adapter_tensors(model, "a", {}))
    alone = PEFT.from_pretrained(POLICIES.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(alone), logits(model), atol=1e-5, rtol=1e-5)
    assert differ(logits(alone), logits(tiny))
    again: Any = tiny_lm(family)
    assert load_adapter(again, "x", tmp_path / "adapter") == {}
    assert torch.equal(logits(again), logits(model))
    assert not any(weight.requires_grad for weight in again.base_model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_alone_reads_a_saved_reward_adapter(family: str, tmp_path: Path) -> None:
    base: Any = tiny_lm(family)
    base.save_pretrained(tmp_path / "base")
    classifier: Any = classifier_on(base)
    add_adapter(classifier, "a", SPEC)
    shaken(classifier, "a")
    ours = RewardModel(classifier, adapter="a")
    ours.reset_head(1)
    ours.normalise(0.25, 0.01)
    (tmp_path / "adapter").mkdir()
    tensors = adapter_tensors(classifier, "a", {"score": ours.head})
    save_adapter(classifier, "a", tmp_path / "adapter", base="../base", tensors=tensors, heads=["score"])
    rows = random_rows([(3, 4), (3, 4), (5, 2)])
    theirs = CLASSIFIERS.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=299)
    alone = PEFT.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        scores = alone(input_ids=pad_rows(rows).tokens).logits.squeeze(-1)
        found = ours(pad_rows(rows))
    torch.testing.assert_close(scores - ours.shift, found, atol=1e-4, rtol=1e-4)
    assert found.std() > 0.1


def peft_adapter(folder: Path, family: str = "llama", **options: Any) -> Any:
    """Made and saved by peft itself beside `base`, whose name is then given relative to it; the model it makes."""
    save_tiny_lm(folder / "base", family=family)
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = get_peft_model(POLICIES.from_pretrained(folder / "base"), LoraConfig(**settings | options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.8)
    model.save_pretrained(folder / "adapter")
    change_config(folder / "adapter", base_model_name_or_path="../base")
    return model.eval()


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"target_modules": r".*\.[qv]_proj", "exclude_modules": ["layers.0.self_attn.q_proj"]}),
        ("llama", {"target_modules": ["q_proj", "self_attn.o_proj"], "layers_to_transform": [1]}),
        ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"]}),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft's
def test_an_adapter_of_pefts_own_is_a_start(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = peft_adapter(tmp_path, family, **options)
    source = str(tmp_path / "adapter")
    model: Any = load_causal_lm(source)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)
    base: Any = load_causal_lm(str(tmp_path / "base"))
    assert differ(logits(model), logits(base))
    on_base: Any = load_causal_lm(str(tmp_path / "base"))
    load_adapter(on_base, "x", tmp_path / "adapter")
    torch.testing.assert_close(logits(on_base), logits(theirs), atol=1e-4, rtol=1e-4)
    assert context_length(source) == 64
    classifier: Any = load_classifier(source, new_head=True)
    body = model.base_model.state_dict()
    assert all(torch.equal(tensor, body[key]) for key, tensor in classifier.base_model.state_dict().items())
    with pytest.raises(UserError, match="is an adapter alone, no reward model; give the whole model"):
        load_classifier(source)
    monkeypatch.chdir(tmp_path)  # a path that peft was given is relative to where it was run
    change_config(tmp_path / "adapter", base_model_name_or_path="./base")
    assert torch.equal(logits(load_causal_lm("adapter")), logits(model))


def test_the_text_side_of_an_adapter_is_its_own_or_its_bases(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    config = tmp_path / "base" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [0, 7]}))
    renderer = load_renderer(str(tmp_path / "adapter"))
    assert renderer.codec.hf.get_vocab() == tiny_codec().hf.get_vocab()
    assert renderer.eos_ids == {0, 7}
    own = tiny_codec()
    own.hf.add_tokens(["zebra"])
    own.save(tmp_path / "adapter")
    renderer = load_renderer(str(tmp_path / "adapter"))
    assert "zebra" in renderer.codec.hf.get_vocab()
    assert renderer.eos_ids == {0, 7}


def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    """A run that began with an adapter trains another one on it."""
    peft_adapter(tmp_path)
    model: Any = load_causal_lm(str(tmp_path / "adapter"))
    add_adapter(model, "b", SPEC)
    shaken(model, "b")
    (tmp_path / "second").mkdir()
    save_adapter(model, "b", tmp_path / "second", base="../adapter", tensors=adapter_tensors(model, "b", {}))
    found = logits(load_causal_lm(str(tmp_path / "second")))
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=1e-4)
    assert context_length(str(tmp_path / "second")) == 64
    assert load_renderer(str(tmp_path / "second")).eos_ids == {0}


# --- refusals ---


def test_targets_that_are_not_there() -> None:
    with pytest.raises(UserError) as raised:
        add_adapter(tiny_lm(), "a", AdapterSpec(2, 2.0, ("q_proj", "query", "down")))
    assert str(raised.value) == (
        "lora.targets: the model has no linear layer down, query; it has down_proj, gate_proj, k_proj, o_proj, "
        "q_proj, up_proj, v_proj"
    )
    with pytest.raises(UserError, match="no linear layer to adapt; it has"):
        add_adapter(tiny_lm(), "a", AdapterSpec(2, 2.0, ()))


def another_models(folder: Path) -> None:
    tensors = {key: torch.ones(5, 5) for key in load_file(folder / "adapter_model.safetensors")}
    save_file(tensors, folder / "adapter_model.safetensors")


def on_other_layers(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {key.replace("q_proj", "query"): tensor for key, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def without_its_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def with_a_pointer_for_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


def broken(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (config(use_dora=True), r"of a kind that Keel does not read \(use_dora\); merge it with peft first$"),
        (config(rank_pattern={"q_proj": 4}), r"does not read \(rank_pattern\)"),
        (config(bias="all"), r"does not read \(bias\)"),
        (config(init_lora_weights="pissa"), r"does not read \(init_lora_weights\)"),  # the base was changed too
        (config(of_the_future=3), r"does not read \(of_the_future\)"),
        (config(peft_type="IA3"), r"does not read \(IA3\)"),
        (config(r=None), r"adapter_config.json lacks a rank or an alpha$"),
        (on_other_layers, "does not fit this model: it was made for another one$"),
        (config(base_model_name_or_path=None), "adapter_config.json does not name the model the adapter belongs on$"),
        (broken, "adapter_config.json cannot be read as an adapter's description$"),
        (another_models, "does not fit this model: it was made for another one$"),
        (without_its_weights, "adapter_model.safetensors cannot be read: "),
        (with_a_pointer_for_weights, "adapter_model.safetensors cannot be read: "),
    ],
)
def test_an_adapter_that_would_be_misread(spoil: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    spoil(tmp_path / "adapter")
    with pytest.raises(UserError, match=sentence) as raised:
        load_causal_lm(str(tmp_path / "adapter"))
    assert "\n" not in str(raised.value)


def test_weights_beside_the_adapter_are_not_left_out(tmp_path: Path) -> None:
    peft_adapter(tmp_path, modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"comes with other weights \(lm_head\.weight\), which Keel would leave out"):
        load_causal_lm(str(tmp_path / "adapter"))


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"no model could be loaded from \.\./base"):
        load_causal_lm(str(tmp_path / "adapter"))


def test_a_head_beside_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="has no sequence classifier with a `score` head on the same body"):
        classifier_on(tiny_lm("cohere"))
    model: Any = tiny_lm()
    add_adapter(model, "a", SPEC)
    classifier: Any = classifier_on(model)
    assert classifier.base_model is model.base_model
    assert active_adapter(classifier) == "a"
    assert type(classifier) is type(tiny_classifier())
    assert not hasattr(model.config, "keel_reward_shift")
    RewardModel(classifier).set_shifts([3.0])
    assert not hasattr(model.config, "keel_reward_shift")  # the language model's configuration is another one
