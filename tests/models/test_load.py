from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from keel.errors import UserError
from keel.models.load import load_causal_lm, load_classifier, resolve_device
from keel.models.reward import RewardModel
from tests.worlds import save_tiny_lm, tiny_classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_lm(tmp_path / "model")


def test_loads_in_float32_without_dropout(tmp_path: Path) -> None:
    folder = save_tiny_lm(tmp_path, family="gpt2")  # its configuration asks for dropout
    model = load_causal_lm(str(folder))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_a_language_model_is_no_reward_model_unless_a_new_head_is_asked_for(folder: Path) -> None:
    """A random head would be trained against as if it knew something."""
    with pytest.raises(UserError, match=r"is no reward model: its weights lack score\.weight"):
        load_classifier(str(folder))


def test_a_classifier_from_a_language_model_has_one_new_score(folder: Path) -> None:
    model: Any = load_classifier(str(folder), new_head=True)
    base: Any = load_causal_lm(str(folder))
    assert model.score.weight.shape == (1, 16)
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("load", [load_causal_lm, partial(load_classifier, new_head=True)])
@pytest.mark.parametrize("safetensors_beside", [False, True])
def test_pickled_weights_are_never_read(folder: Path, load: Any, safetensors_beside: bool) -> None:
    sprung = folder / "sprung"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    if safetensors_beside:
        load(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError) as caught:
            load(str(folder))
        assert f"no model could be loaded from {folder}" in str(caught.value)
        assert "only safetensors weights are read; convert pickled ones with transformers first" in str(caught.value)
    assert not sprung.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert sprung.exists()  # the trap works


@pytest.mark.parametrize("remote_code", ["auto_map_only", "unknown_type"])
def test_code_in_the_directory_is_not_run_unasked(folder: Path, remote_code: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if remote_code == "unknown_type":
        config["model_type"] = "homemade"
        config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    else:
        config["auto_map"] = {"AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    if remote_code == "unknown_type":
        with pytest.raises(UserError, match="no model could be loaded from"):
            load_causal_lm(str(folder))
    else:
        load_causal_lm(str(folder))
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\x00"), ""),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "zzz"}'), "zzz"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors weights are read"),
    ],
    ids=["lfs_pointer", "cut_weights", "cut_config", "unknown_type", "no_config", "no_weights"],
)
def test_a_directory_that_holds_no_whole_model(folder: Path, spoil: Any, sentence: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=f"no model could be loaded from {folder}: ") as caught:
        load_causal_lm(str(folder))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_directory_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model could be loaded from .*none: .*\(and there is no such directory\)"):
        load_causal_lm(str(tmp_path / "none"))


def test_a_classifier_with_several_labels_is_no_reward_model(tmp_path: Path) -> None:
    model: Any = tiny_classifier(num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no reward model with one score a text: its head's weights have another"):
        load_classifier(str(tmp_path))


def test_an_encoders_classifier_is_no_reward_model() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(UserError, match="BertForSequenceClassification has no `score` head"):
        RewardModel(BertForSequenceClassification(config))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UserError, match=r"device: 'gpu' cannot be used here .*; give auto, cpu, cuda or mps"):
        resolve_device("gpu")
