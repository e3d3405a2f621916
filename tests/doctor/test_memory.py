from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.config.recipe import Recipe, parse_recipe
from keel.doctor import memory, space
from keel.doctor.estimate import Load, Model
from keel.doctor.finding import Finding, Mark
from keel.doctor.loads import Loads
from keel.doctor.memory import check_memory
from keel.models.adapters import AdapterSpec, adapter_parameters, add_adapter
from tests.end_to_end.tiny import tiny_recipe
from tests.worlds import save_tiny_lm, tiny_classifier, tiny_codec, tiny_lm

OUT = Path("runs/a")


@pytest.fixture(autouse=True)
def _in_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_lm(Path("model"))


def whole(**stages: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "a",
        "device": "cpu",
        "model": {"base": "model"},
        "sft": {"data": "demos.jsonl"},
        "reward": {"data": "pairs.jsonl"},
        "direct": {"data": "pairs.jsonl"},
        "ppo": {"prompts": "prompts.jsonl"},
    }
    return parse_recipe(tree | stages, "test")


def load(recipe: Recipe, stage: str, processes: int = 1) -> Load:
    return Loads(recipe, OUT, torch.device("cpu"), processes, processes).of(stage)


def check(recipe: Recipe, **options: Any) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_memory(recipe, OUT, **options)}


def numbers(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


VOCAB = len(tiny_codec().hf)
LM = numbers(tiny_lm(vocab=VOCAB))
JUDGE = numbers(tiny_classifier(vocab=VOCAB))


def told(models: tuple[Model, ...]) -> list[tuple[str, int, int]]:
    return [(model.role, model.shape.weights, model.trained) for model in models]


def test_who_is_held_where_everything_trains() -> None:
    recipe = whole(ppo={"prompts": "prompts.jsonl", "critic": "network"})
    assert told(load(recipe, "sft").models) == told(load(recipe, "direct").models) == [("policy", LM, LM)]
    assert told(load(recipe, "reward").models) == [("reward", JUDGE, JUDGE), ("reference", LM, 0)]
    policy, critic = ("policy", LM, LM), ("critic", JUDGE, JUDGE)
    assert told(load(recipe, "ppo").models) == [policy, critic, ("reference", LM, 0), ("reward", JUDGE, 0)]


def test_who_is_held_with_adapters() -> None:
    backbone = tiny_lm(vocab=VOCAB)
    add_adapter(backbone, "policy", AdapterSpec(16, 32.0))
    adapter = sum(weight.numel() for weight in adapter_parameters(backbone, "policy"))
    recipe = whole(model={"base": "model", "tune": "lora"}, ppo={"prompts": "prompts.jsonl", "critic": "network"})
    (base,) = load(recipe, "ppo").models
    assert told((base,)) == [("policy, critic, reference, reward", LM, 2 * adapter)]
    assert base.adapters
    assert base.passes == 2
    assert told(load(recipe, "reward").models) == [("reward, reference", LM, adapter)]
    another = whole(model={"base": "model", "tune": "lora"}, reward={"data": "pairs.jsonl", "init": "model"})
    assert [model.role for model in load(another, "ppo").models] == ["policy, reference", "reward"]


def test_what_a_stage_does() -> None:
    ppo = {"prompts": "prompts.jsonl", "max_prompt_tokens": 20, "sampling": {"max_new_tokens": 10, "batch": 24}}
    found = load(whole(ppo=ppo), "ppo")
    assert (found.row, found.update_tokens, found.scoring_tokens, found.slots) == (30, 16 * 30, 64 * 30, 24)
    assert load(whole(ppo=ppo), "ppo", processes=4).slots == 16  # a quarter of 64 responses
    assert load(whole(ppo=ppo | {"max_prompt_tokens": 512}), "ppo").row == 64  # the context
    reward = load(whole(), "reward")
    assert not reward.vocabulary_loss
    assert reward.sampler == "reference"
    assert reward.slots == 128
    assert reward.update_tokens == 2048
    assert load(whole(reward={"data": "pairs.jsonl", "token_budget": 8}), "reward").update_tokens == 2 * 64


def test_a_model_from_nothing_is_counted_from_its_settings() -> None:
    recipe = tiny_recipe()
    scratch = recipe.model.scratch
    assert scratch is not None
    (policy,) = load(recipe, "sft").models
    assert policy.trained == policy.shape.weights == policy.shape.root + scratch.layers * policy.shape.block
    assert load(recipe, "ppo").models[0].shape == policy.shape


def test_a_finding_for_each_training_stage() -> None:
    findings = check(whole(collect=None, evaluate=None))
    assert list(findings) == ["memory of sft", "memory of reward", "memory of direct", "memory of ppo"]
    assert {finding.mark for finding in findings.values()} == {Mark.GOOD}
    assert " a process at its peak, the update (" in findings["memory of sft"].said


def test_what_does_not_fit_comes_with_the_settings_that_are_not_yet_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: memory.PROGRAM)
    network = {"prompts": "prompts.jsonl", "critic": "network", "update": {"minibatches": 1}}
    finding = check(whole(ppo=network))["memory of ppo"]
    assert finding.mark == Mark.BAD
    assert finding.mend == (
        "model.tune: lora; or ppo.critic: head; or model.gradient_checkpointing: true; or a smaller "
        "ppo.update.token_budget; or a machine with more memory"
    )
    small = {"base": "model", "tune": "lora", "gradient_checkpointing": True}
    wide = {"prompts": "prompts.jsonl", "rollout_batch": 4096, "sampling": {"batch": 4096, "max_new_tokens": 32}}
    assert check(whole(model=small, ppo=wide))["memory of ppo"].mend == (
        "a smaller ppo.rollout_batch; or a machine with more memory"
    )


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 3 * memory.PROGRAM)
    assert check(whole())["memory of sft"].mark == Mark.GOOD
    finding = check(whole(), processes=4)["memory of sft"]
    assert finding.mark == Mark.BAD
    assert finding.said.endswith("; there are 1.5 GiB for 4 processes")


def test_what_is_gathered_whole_is_helped_by_no_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 4 * LM)
    wide = {"prompts": "prompts.jsonl", "sampling": {"max_new_tokens": 32}}
    assert check(whole(ppo=wide), processes=64)["memory of ppo"].mend.startswith("no number of processes helps")


def test_on_a_gpu_what_is_written_wants_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resolve_device", torch.device)
    monkeypatch.setattr(memory, "memory_of", lambda device: 1 << 36)
    recipe = whole(device="cuda", model={"base": "model", "precision": "bfloat16"})
    assert {finding.mark for finding in check(recipe).values()} == {Mark.GOOD}
    monkeypatch.setattr(memory, "host_memory", lambda: 2 * LM)
    findings = check(recipe, processes=2)
    assert findings["memory of sft"].mark == Mark.GOOD
    assert findings["writing the model of sft"].mark == Mark.BAD  # 2 bytes a number of nine tenths of 2
    monkeypatch.setattr(memory, "host_memory", lambda: 3 * LM)
    assert "writing the model of sft" not in check(recipe, processes=2)


def test_a_model_that_cannot_be_looked_at_is_said() -> None:
    finding = check(whole(model={"base": "owner/not-fetched"}))["memory of sft"]
    assert finding.mark == Mark.NOTE
    assert finding.said.startswith("not estimated: the configuration of owner/not-fetched cannot be read here")


def test_space_is_that_of_checkpoints_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that stay, the best, the one that is written: 12 bytes a number that trains; and the model, 4 bytes."""
    recipe = whole(ppo={"prompts": "prompts.jsonl", "critic": "head"})
    trained = load(recipe, "ppo").models[0].trained
    assert space.stage_bytes(recipe, "ppo", load(recipe, "ppo")) == 4 * 12 * trained + 4 * LM
    more = whole(sft={"data": "demos.jsonl", "keep_checkpoints": 5})
    assert space.stage_bytes(more, "sft", load(more, "sft")) == 6 * 12 * LM + 4 * LM
    lora = whole(model={"base": "model", "tune": "lora"})
    numbers_of_it = load(lora, "sft").models[0].trained
    assert space.stage_bytes(lora, "sft", load(lora, "sft")) == (3 * 12 + 4) * numbers_of_it + 4 * LM

    (finding,) = space.check_space(recipe, OUT)
    assert finding.mark is Mark.GOOD
    assert [stage in finding.said for stage in ("sft", "reward", "direct", "ppo")] == [True] * 4
    full = shutil.disk_usage(".")._replace(free=4 * LM)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    (finding,) = space.check_space(recipe, OUT)
    assert finding.mark is Mark.BAD
    assert "keep_checkpoints: 1" in finding.mend
