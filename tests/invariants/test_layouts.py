"""What must hold in every layout: which weights train, where the critic lives, in what precision, with recomputation.

The supervised model and the comparisons are made once; each layout's run links what it has in common with another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.build import run_recipe
from keel.build.ppo import run_ppo
from keel.build.workbench import Workbench
from keel.config.recipe import Recipe
from keel.errors import UserError
from keel.inputs import stage_inputs
from keel.models.load import load_causal_lm
from keel.models.reward import SHIFT_KEY
from keel.pipeline.guards import RATIO_TOLERANCE
from keel.runs.metrics import read_lines
from tests.end_to_end.killing import differences
from tests.end_to_end.tiny import tiny_recipe
from tests.pipeline.support import Heard, begin_stage
from tests.worlds import prefix_space_codec

STEP = [
    *("ppo.iterations=3", "ppo.update.minibatches=1", "ppo.update.epochs=1", "ppo.evaluate.count=2"),
    *("ppo.checkpoint_every=1", "ppo.evaluate.every=3", "model.lora.rank=4", "ppo.rollout_batch=8"),
]
COMMON = ["model.scratch.layers=2", "sft.epochs=1", "collect.prompts.limit=60"]

# (tune, critic, precision, gradient checkpointing): every pair of settings is in one of them
LAYOUTS = [
    ("full", "head", "float32", True),
    ("full", "network", "float32", False),
    ("full", "none", "bfloat16", True),
    ("full", "network", "bfloat16", True),
    ("lora", "head", "bfloat16", False),
    ("lora", "network", "float32", True),
    ("lora", "network", "bfloat16", False),
    ("lora", "none", "float32", False),
]
Layout = tuple[str, str, str, bool]


def recipe_of(tune: str, critic: str, precision: str, recompute: bool) -> Recipe:
    settings = [f"model.tune={tune}", f"model.precision={precision}", f"model.gradient_checkpointing={recompute}"]
    settings += [f"ppo.critic={critic}"] + ["ppo.advantage.kind=reward_to_go"] * (critic == "none")
    lora = [setting for setting in STEP if tune == "lora" or "lora" not in setting]
    return tiny_recipe([*COMMON, *lora, *settings])


class Stops(Heard):
    """A console out of which an interruption comes, as a key that is pressed would."""

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if stage == "ppo" and done == 2:
            raise KeyboardInterrupt


class Runs:
    """Each layout's run, made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def earlier(self, tune: str, precision: str) -> Path:
        """A run up to the reward model."""
        out = self.folder / f"{tune}-{precision}"
        if not out.exists():
            start = self.folder / f"full-{precision}"
            reuse = None if out == start else self.earlier("full", precision)
            run_recipe(recipe_of(tune, "head", precision, False), out, console=Heard(), only="sft", reuse=reuse)
            for stage in ("collect", "reward"):
                run_recipe(recipe_of(tune, "head", precision, False), out, console=Heard(), only=stage, reuse=reuse)
        return out

    def finished(self, layout: Layout) -> Path:
        out = self.folder / "-".join(map(str, layout))
        if not out.exists():
            self.run(layout, out)
        return out

    def run(self, layout: Layout, out: Path, console: Heard | None = None) -> None:
        reuse = self.earlier(layout[0], layout[2])
        for stage in ("sft", "collect", "reward", "ppo"):
            run_recipe(recipe_of(*layout), out, console=console or Heard(), only=stage, reuse=reuse)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
def test_the_first_step_is_on_the_reference(layout: Layout, runs: Runs) -> None:
    lines = read_lines(runs.finished(layout) / "ppo" / "metrics.jsonl")
    first, last = lines[1], lines[-1]
    if layout[2] == "float32":
        assert abs(first["objective/kl"]) < 1e-5
        assert all(line["ppo/policy/first_ratio_gap"] < RATIO_TOLERANCE / 10 for line in lines[1:])
        assert "ppo/policy/sampler_gap" not in last
    else:  # the sampler's are not the learner's, whose own are exactly those of the reference
        assert first["objective/kl"] == 0.0
        assert all(line["ppo/policy/first_ratio_gap"] < 0.05 for line in lines[1:])
        assert 0 <= last["ppo/policy/sampler_gap"] < 0.02
    assert last["objective/kl"] != first["objective/kl"], "nothing was learned"
    assert (last.get("ppo/loss/value", 0.0) > 0) == (layout[1] != "none")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
def test_an_interrupted_run_ends_as_the_one_left_alone(layout: Layout, runs: Runs) -> None:
    alone = runs.finished(layout)
    out = alone.with_name(f"{alone.name}-interrupted")
    with pytest.raises(KeyboardInterrupt):
        runs.run(layout, out, Stops())
    assert not (out / "ppo" / "model").exists()
    console = Heard()
    runs.run(layout, out, console)
    assert any("goes on from step 1 " in said for said in console.said)
    assert differences(alone / "ppo", out / "ppo") == []
    assert (out / "ppo" / "adapter" / "adapter_model.safetensors").exists() == (layout[0] == "lora")


# --- how often the base is held ---


def numbers_in(file: Path) -> int:
    """Parameters of a saved model, by its file alone; embeddings that are tied stand there once."""
    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    return sum(int(torch.Size(shape).numel()) for shape in shapes)


def held(runs: Runs, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Numbers in distinct storage over all models that PPO holds."""
    out = runs.finished(layout)
    recipe = recipe_of(*layout)
    bench = Workbench(recipe, stage_inputs(recipe, out, "ppo"), begin_stage(tmp_path, "ppo"), Heard())
    found: dict[str, Any] = {}

    def instead(config: Any, engines: Any, *args: Any, **options: Any) -> dict[str, Any]:
        found["policy"], found["reference"] = engines.actors.policy.policy, engines.actors.reference.policy
        found["reward"] = engines.actors.scorer.scorers[0][0].model
        return {}

    monkeypatch.setattr("keel.build.ppo.train_ppo", instead)
    run_ppo(bench)
    storages = {
        weight.untyped_storage().data_ptr(): weight.numel()
        for module in found.values()
        for weight in module.parameters()
    }
    trained = int(bench.models.describe().rsplit("; ", 1)[1].split()[0].replace(",", ""))  # as the terminal says
    base = numbers_in(out / "sft" / "model" / "model.safetensors")
    return {"all": sum(storages.values()), "trained": trained, "base": base}


HIDDEN, HIDDEN_MLP, RANK = 16, 42, 4
ADAPTER = 2 * RANK * (4 * 2 * HIDDEN + 3 * (HIDDEN + HIDDEN_MLP))  # two layers: q, k, v, o and three of the MLP
PAD = HIDDEN  # the embedding of a reward model's own pad token


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_adapters_the_base_is_held_once(
    precision: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"head": 2 * ADAPTER + (HIDDEN + 1) + HIDDEN, "network": 3 * ADAPTER + (HIDDEN + 1) + HIDDEN}
    critic = "network" if precision == "float32" else "head"
    layout = next(one for one in LAYOUTS if one[:3] == ("lora", critic, precision))
    count = held(runs, layout, tmp_path, monkeypatch)
    assert count["all"] == count["base"] + expected[critic]
    assert count["trained"] == expected[critic] - ADAPTER - HIDDEN  # all but the reward's


def test_full_tuning_holds_a_base_for_each_role(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = held(runs, ("full", "network", "float32", False), tmp_path, monkeypatch)
    critic, reward = count["base"] + PAD + (HIDDEN + 1), count["base"] + PAD + HIDDEN
    assert count["all"] == 2 * count["base"] + critic + reward
    assert count["trained"] == count["base"] + critic


# --- the artefacts of adapters ---

POLICIES: Any = AutoModelForCausalLM  # untyped
CLASSIFIERS: Any = AutoModelForSequenceClassification
TOKENS = torch.tensor([[5, 6, 7, 250, 9], [11, 12, 13, 14, 15]])


@pytest.fixture(scope="module")
def moved(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters on a base in the same directory, moved as a whole after it was made."""
    top = tmp_path_factory.mktemp("adapters")
    shutil.copytree(runs.earlier("full", "float32") / "sft" / "model", top / "before" / "base")
    tree = tiny_recipe([*COMMON[1:], *STEP, "model.tune=lora", "ppo.iterations=1"]).model_dump(exclude_unset=True)
    tree["model"] = {"base": str(top / "before" / "base"), "tune": "lora", "lora": {"rank": 4}}
    tree["sft"]["lr"] = tree["ppo"]["update"]["lr"] = 0.03
    del tree["evaluate"]
    run_recipe(Recipe.model_validate(tree), top / "before" / "run", console=Heard())
    (top / "before").rename(top / "after")
    return top / "after"


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_policys_adapter_on_its_base_is_its_model(stage: str, moved: Path) -> None:
    from peft import PeftModel

    folder = moved / "run" / stage / "adapter"
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == {"sft": "../../../base", "ppo": "../../sft/model"}[stage]
    loader: Any = PeftModel
    alone = loader.from_pretrained(POLICIES.from_pretrained(folder / named), folder).eval()
    model = POLICIES.from_pretrained(moved / "run" / stage / "model").eval()
    base = POLICIES.from_pretrained(folder / named).eval()
    ours: Any = load_causal_lm(str(folder))
    with torch.no_grad():
        expected = model(TOKENS).logits
        torch.testing.assert_close(alone(input_ids=TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours(TOKENS).logits, expected, atol=1e-6, rtol=1e-6)
        assert float((base(TOKENS).logits - expected).abs().max()) > 1e-3
    assert AutoTokenizer.from_pretrained(folder).chat_template  # its own, for who loads it alone


def test_a_reward_models_adapter_on_its_base_is_its_model(moved: Path) -> None:
    from peft import PeftModel

    folder = moved / "run" / "reward" / "adapter"
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "../../sft/model"
    base = CLASSIFIERS.from_pretrained(folder / named, num_labels=1, pad_token_id=1)
    loader: Any = PeftModel
    alone = loader.from_pretrained(base, folder).eval()
    model = CLASSIFIERS.from_pretrained(folder.parent / "model").eval()
    with torch.no_grad():
        scores, expected = alone(input_ids=TOKENS).logits, model(TOKENS).logits
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert float((expected[0] - expected[1]).abs()) > 1e-3
    shift = json.loads((folder / "keel_origin.json").read_text())[SHIFT_KEY]
    assert shift == getattr(model.config, SHIFT_KEY) != 0


def test_a_base_behind_a_link_is_named_from_where_the_adapter_really_lies(moved: Path, tmp_path: Path) -> None:
    """`runs` is often a link to a larger disk: `..` out of it leads elsewhere."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep")
    tree = tiny_recipe(["model.tune=lora"]).model_dump(exclude_unset=True)
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "device": "cpu",
            "model": {"base": str(moved / "base"), "tune": "lora"},
            "sft": tree["sft"] | {"epochs": 1},
        }
    )
    run_recipe(recipe, tmp_path / "runs" / "x", console=Heard())
    folder = tmp_path / "runs" / "x" / "sft" / "adapter"
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (folder / named).samefile(moved / "base")
    shutil.rmtree(tmp_path / "disk")


# --- what is refused ---


def ppo_recipe(moved: Path, **ppo: Any) -> Recipe:
    tree = tiny_recipe().model_dump(exclude_unset=True)
    content = {key: tree["ppo"][key] for key in ("prompts", "rollout_batch", "sampling", "max_truncated")}
    content |= {"iterations": 1, "reward": [{"function": "keel.demo:polite"}]} | ppo
    base = {"base": str(moved / "run" / "sft" / "model")}
    return Recipe.model_validate({"name": "x", "device": "cpu", "model": base, "ppo": content})


def test_a_critic_network_with_another_vocabulary(moved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(moved / "run" / "reward" / "model", other)
    prefix_space_codec().save(other)
    recipe = ppo_recipe(moved, critic="network", critic_init=str(other))
    with pytest.raises(UserError) as raised:
        run_recipe(recipe, tmp_path / "out", console=Heard())
    assert str(raised.value) == (
        f"ppo.critic: network reads the policy's tokens, and {other} has another vocabulary; give critic_init a reward "
        "model of the policy's family, or take critic: head"
    )
    assert not (tmp_path / "out" / "ppo" / "model").exists()


def test_a_policy_elsewhere_than_the_reference(moved: Path, tmp_path: Path) -> None:
    """The reward model's adapter belongs on the reference's base, the policy's on another: both are right."""
    run = moved / "run"
    shutil.copytree(run / "reward" / "model", tmp_path / "judge" / "model.v2")  # what it is called is free
    shutil.copytree(run / "reward" / "adapter", tmp_path / "judge" / "adapter")
    recipe = ppo_recipe(
        moved,
        critic="network",
        policy=str(run / "ppo" / "model"),
        reference=str(run / "sft" / "model"),
        reward=[{"model": str(tmp_path / "judge" / "model.v2")}],
    )
    scores = {}
    for tune in ("full", "lora"):
        content = recipe.model_dump(exclude_unset=True)
        content["model"]["tune"] = tune
        run_recipe(Recipe.model_validate(content), tmp_path / tune, console=Heard())
        scores[tune] = read_lines(tmp_path / tune / "ppo" / "metrics.jsonl")
    for key in ("objective/scores", "objective/kl", "ppo/val/explained_variance"):
        assert scores["lora"][1][key] == pytest.approx(scores["full"][1][key], abs=1e-4)
    assert scores["full"][1]["objective/kl"] != 0
