from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from keel.batching import pad_rows
from keel.errors import UserError
from keel.models.adapters import body_of
from keel.models.load import (
    choose_label,
    classifier_on,
    context_length,
    load_causal_lm,
    load_classifier,
    resolve_device,
    resolve_precision,
)
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from tests.worlds import random_rows, save_tiny_lm, tiny_classifier, tiny_lm


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


@pytest.mark.parametrize("width", [None, 8])
def test_a_weight_that_is_missing_or_of_another_shape_is_not_made_up(folder: Path, width: int | None) -> None:
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    if width is not None:
        weights["model.norm.weight"] = norm[:width].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is no whole model: its weights lack model\.norm\.weight, or have another"):
        load_causal_lm(str(folder))


def test_a_missing_directory_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model could be loaded from .*none: .*\(and there is no such directory\)"):
        load_causal_lm(str(tmp_path / "none"))


def test_a_classifier_with_several_labels_cannot_be_trained(tmp_path: Path) -> None:
    model: Any = tiny_classifier(num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no reward model with one score a text: its head's weights have another"):
        load_classifier(str(tmp_path), new_head=True)


def test_a_classifier_is_loaded_as_it_is_and_to_be_trained_without_its_pad_id(tmp_path: Path) -> None:
    model: Any = tiny_classifier(num_labels=3)
    model.config.pad_token_id = 7
    model.save_pretrained(tmp_path / "three")
    three: Any = load_classifier(str(tmp_path / "three"))
    assert three.score.weight.shape == (3, 16)
    assert three.config.pad_token_id == 7
    one: Any = tiny_classifier()
    one.config.pad_token_id = 0  # the end token: read at the last token before it, the end would never be learned
    one.save_pretrained(tmp_path / "one")
    trained: Any = load_classifier(str(tmp_path / "one"), new_head=True)
    assert trained.config.pad_token_id is None


def test_a_reward_head_on_a_shared_body_forgets_the_bodys_pad_id() -> None:
    """Many bases pad with their end token, where the score is read."""
    base: Any = tiny_lm()
    base.config.pad_token_id = 0
    shared: Any = classifier_on(base)
    assert shared.config.pad_token_id is None
    assert base.config.pad_token_id == 0


def test_a_label_is_chosen_by_index_or_name() -> None:
    model: Any = tiny_classifier(num_labels=3)
    model.config.id2label = {0: "rude", 1: "neutral", 2: "polite"}
    assert [choose_label(model, label, "label") for label in (2, "polite", 0, "neutral")] == [2, 2, 0, 1]
    assert choose_label(tiny_classifier(), None, "label") == 0
    listed = r"give one of 0 \(rude\), 1 \(neutral\), 2 \(polite\)$"
    with pytest.raises(UserError, match="^label of the reward r: the model has several labels; " + listed):
        choose_label(model, None, "label of the reward r")
    for label in (3, -1, "kind"):
        with pytest.raises(UserError, match=f"^label: {label!r} names no label of the model; " + listed):
            choose_label(model, label, "label")


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UserError, match=r"device: 'gpu' cannot be used here .*; give auto, cpu, cuda or mps"):
        resolve_device("gpu")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_precision("auto", cpu) == torch.float32
    for device in (cpu, cuda):
        assert resolve_precision("bfloat16", device) == torch.bfloat16
        assert resolve_precision("float32", device) == torch.float32
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert resolve_precision("auto", cuda) == dtype


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere"])
def test_bfloat16(tmp_path: Path, family: str) -> None:
    folder = str(save_tiny_lm(tmp_path, family=family))
    model: Any = load_causal_lm(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    exact: Any = load_causal_lm(folder)
    for name, weight in exact.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(torch.bfloat16))
    rows = pad_rows(random_rows([(3, 5), (2, 9)]))
    with torch.no_grad():
        found, expected = Policy(model)(rows).logprobs, Policy(exact)(rows).logprobs  # neither head is refused
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_a_score_is_read_in_float32(tmp_path: Path) -> None:
    """In bfloat16 itself a score of 20 could only be told from 20.125."""
    saved: Any = tiny_classifier()
    with torch.no_grad():
        saved.score.weight.mul_(300)
    saved.save_pretrained(tmp_path)
    model = RewardModel(load_classifier(str(tmp_path), dtype=torch.bfloat16))
    assert {weight.dtype for weight in body_of(model.classifier).parameters()} == {torch.bfloat16}
    with torch.no_grad():
        scores = model(pad_rows(random_rows([(3, n) for n in range(1, 9)])))
    assert scores.abs().median() > 16
    assert not torch.equal(scores, scores.to(torch.bfloat16).float())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_classifier_on_a_body_is_the_one_transformers_would_load(tmp_path: Path, family: str) -> None:
    folder = str(save_tiny_lm(tmp_path, family=family))
    backbone = load_causal_lm(folder)
    classifier, alone = classifier_on(backbone), load_classifier(folder, new_head=True)
    assert body_of(classifier) is body_of(backbone)
    assert type(classifier) is type(alone)
    assert classifier.state_dict().keys() == alone.state_dict().keys()
    assert all(not weight.is_meta for weight in classifier.parameters())
    assert not any(module.training for module in classifier.modules())
    ours, theirs = RewardModel(classifier), RewardModel(alone)
    rows = pad_rows(random_rows([(3, 5), (2, 9)]))
    with torch.no_grad():
        assert (ours(rows) == 0).all()
        for model in (ours, theirs):
            model.reset_head(1)
        assert torch.equal(ours(rows), theirs(rows))
        assert ours(rows).abs().min() > 0


@pytest.mark.parametrize("load", [load_causal_lm, partial(load_classifier, new_head=True)])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_quantised_weights_are_refused(folder: Path, load: Any, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as raised:
        load(str(folder))
    assert str(raised.value) == (
        f"{folder} is quantised: an adapter merged into such weights is rounded away with them, so the reference "
        "would not be the model that was trained; give the model in bfloat16 or float32"
    )


@pytest.mark.parametrize("load", [load_causal_lm, load_classifier, context_length])
def test_whether_to_run_its_code_is_never_asked(folder: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal where it is not told."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match="no model could be loaded from"):
        load(str(folder))
