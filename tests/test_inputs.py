"""What each stage reads, and what makes it another stage."""

from __future__ import annotations

import hashlib
import json
import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import keel
from keel.config.recipe import Recipe, parse_recipe
from keel.config.rewards import RewardSource
from keel.errors import UserError
from keel.inputs import hash_model, stage_identity, stage_inputs
from keel.runs.identity import Identity, differences
from keel.runs.layout import STAGES
from tests.end_to_end.tiny import tiny_recipe

RUN = Path("runs/tiny")
VERSION = keel.__version__


def recipe_of(**stages: Any) -> Recipe:
    return parse_recipe({"name": "x", "model": {"base": "hub/base"}, **stages}, "test")


PPO: dict[str, Any] = {"prompts": "prompts.jsonl", "reward": [{"model": "hub/judge"}]}


def test_the_whole_pipeline_reads_its_own_stages() -> None:
    recipe = tiny_recipe()
    found = {name: stage_inputs(recipe, RUN, name) for name in STAGES}
    sft, reward, ppo = (str(RUN / name / "model") for name in ("sft", "reward", "ppo"))
    assert found["sft"].models == {}  # from nothing
    assert found["collect"].models == {"policy": sft}
    assert found["collect"].functions == {"annotator": "keel.demo:polite"}
    assert found["reward"].models == {"init": sft, "reference": sft}
    assert found["reward"].data["reward.data"].path == str(RUN / "collect" / "comparisons" / "comparisons.jsonl")
    assert found["direct"].data["direct.data"].path == found["reward"].data["reward.data"].path
    assert found["direct"].models == {"policy": sft, "reference": sft}
    assert found["ppo"].models == {"policy": sft, "reference": sft}
    rewards = (
        RewardSource(model=reward, name="reward"),
        RewardSource(function="keel.demo:polite", name="keel.demo.polite", weight=0.1),
    )
    assert found["ppo"].rewards == found["evaluate"].rewards == rewards
    assert found["ppo"].functions == {"utility": "keel.demo:polite"}
    assert found["evaluate"].models == {"policy": ppo, "reference": sft}
    assert found["evaluate"].functions == {"utility": "keel.demo:polite", "measure on_point": "keel.demo:on_point"}
    assert set(found["evaluate"].data) == {"evaluate.prompts", "evaluate.demonstrations"}


def test_without_a_supervised_stage_everything_starts_from_the_base() -> None:
    recipe = recipe_of(ppo=PPO, evaluate={"prompts": "held.jsonl"})
    assert stage_inputs(recipe, RUN, "ppo").models == {"policy": "hub/base", "reference": "hub/base"}
    judged = stage_inputs(recipe, RUN, "evaluate")
    assert judged.models == {"policy": str(RUN / "ppo" / "model"), "reference": "hub/base"}
    assert judged.rewards == (RewardSource(model="hub/judge", name="judge"),)


def test_a_stage_may_name_its_own_models() -> None:
    recipe = recipe_of(
        reward={"data": "pairs.jsonl", "init": "hub/init"},
        ppo={**PPO, "policy": "hub/policy"},
        evaluate={
            "prompts": "held.jsonl",
            "policy": "reward",
            "reference": "some/path",
            "reward": [{"model": "reward"}],
        },
    )
    assert stage_inputs(recipe, RUN, "reward").models == {"init": "hub/init", "reference": "hub/base"}
    ppo = stage_inputs(recipe, RUN, "ppo").models
    assert ppo == {"policy": "hub/policy", "reference": "hub/policy"}  # the leash starts where the policy does
    reward = str(RUN / "reward" / "model")
    judged = stage_inputs(recipe, RUN, "evaluate")
    assert judged.models == {"policy": reward, "reference": "some/path"}
    assert judged.rewards[0].model == reward


def test_a_stages_name_is_a_path_where_the_recipe_has_no_such_stage() -> None:
    recipe = recipe_of(ppo={**PPO, "reference": "sft"})
    assert stage_inputs(recipe, RUN, "ppo").models["reference"] == "sft"


def test_what_direct_has_learnt_is_judged_against_what_it_began_from() -> None:
    evaluate = {"prompts": "held.jsonl", "reward": [{"model": "hub/judge"}]}
    direct = {"data": "pairs.jsonl", "policy": "hub/policy"}
    made = str(RUN / "direct" / "model")
    alone = recipe_of(direct={**direct, "reference": "hub/anchor"}, evaluate=evaluate)
    assert stage_inputs(alone, RUN, "evaluate").models == {"policy": made, "reference": "hub/anchor"}
    without = recipe_of(direct={**direct, "kind": "simpo"}, evaluate=evaluate)
    assert stage_inputs(without, RUN, "direct").models == {"policy": "hub/policy"}
    assert stage_inputs(without, RUN, "evaluate").models == {"policy": made, "reference": "hub/policy"}
    own = recipe_of(direct=direct, reward={"data": "pairs.jsonl"}, evaluate={"prompts": "held.jsonl"})
    assert stage_inputs(own, RUN, "evaluate").rewards[0].model == str(RUN / "reward" / "model")


def test_with_ppo_its_policy_is_judged_unless_direct_is_named() -> None:
    direct = {"data": "pairs.jsonl", "reference": "hub/anchor"}
    after = recipe_of(direct=direct, ppo={**PPO, "policy": "direct"}, evaluate={"prompts": "held.jsonl"})
    made, ppo = (str(RUN / stage / "model") for stage in ("direct", "ppo"))
    assert stage_inputs(after, RUN, "ppo").models == {"policy": made, "reference": made}
    assert stage_inputs(after, RUN, "evaluate").models == {"policy": ppo, "reference": made}
    beside = recipe_of(direct=direct, ppo=PPO, evaluate={"prompts": "held.jsonl", "policy": "direct"})
    assert stage_inputs(beside, RUN, "evaluate").models == {"policy": made, "reference": "hub/anchor"}


def test_an_evaluation_without_a_policy_or_a_judge_is_refused() -> None:
    alone = recipe_of(evaluate={"prompts": "held.jsonl"})
    with pytest.raises(UserError, match=r"^evaluate.policy is missing: the recipe has no ppo and no direct stage"):
        stage_inputs(alone, RUN, "evaluate")
    unjudged = recipe_of(evaluate={"prompts": "held.jsonl", "policy": "hub/policy"})
    with pytest.raises(UserError, match=r"^evaluate.reward is missing: the recipe has no reward stage"):
        stage_inputs(unjudged, RUN, "evaluate")


def test_each_of_several_sources_is_an_input_of_its_own() -> None:
    data = [{"path": "a.jsonl", "weight": 2}, "b.jsonl"]
    recipe = recipe_of(
        sft={"data": data},
        collect={"prompts": data, "annotator": {"script": "keel.demo:polite"}},
        reward={"data": data},
        ppo={**PPO, "prompts": data, "evaluate": {"prompts": data[1:]}},
        evaluate={"prompts": data[1:], "demonstrations": data[1:]},
    )
    keys = {
        "sft": ["sft.data[0]", "sft.data[1]"],
        "collect": ["collect.prompts[0]", "collect.prompts[1]"],
        "reward": ["reward.data[0]", "reward.data[1]"],
        "ppo": ["ppo.prompts[0]", "ppo.prompts[1]", "ppo.evaluate.prompts[0]"],
        "evaluate": ["evaluate.prompts[0]", "evaluate.demonstrations[0]"],
    }
    for stage, expected in keys.items():
        assert list(stage_inputs(recipe, RUN, stage).data) == expected
    inputs = stage_inputs(recipe, RUN, "ppo")
    assert [source.path for source in inputs.sources("ppo.prompts")] == ["a.jsonl", "b.jsonl"]
    assert [source.path for source in inputs.sources("ppo.evaluate.prompts")] == ["b.jsonl"]
    assert inputs.sources("ppo.evaluate") == ()


# --- what makes a stage another one ---


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run whose stages have left something that can be hashed."""
    for folder in ("sft/model", "collect/comparisons", "reward/model", "ppo/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "comparisons.jsonl").write_text("{}")
    return tmp_path


def changed(before: Recipe, after: Recipe, stage: str, run: Path = RUN) -> list[str]:
    one, other = (stage_identity(recipe, stage, stage_inputs(recipe, run, stage)) for recipe in (before, after))
    return differences(one, other)


@pytest.mark.parametrize(
    ("override", "stage", "difference"),
    [
        ("sft.lr=1e-4", "sft", ["sft.lr: 0.003 → 0.0001"]),
        ("seed=3", "collect", ["seed: 0 → 3"]),
        ("model.scratch.hidden=32", "sft", ["model.scratch.hidden: 16 → 32"]),
        ("ppo.update.minibatches=4", "ppo", ["ppo.update.minibatches: 2 → 4"]),
        (
            "ppo.reward=[{model: reward}]",
            "evaluate",
            [
                'rewards.keel.demo.polite.function: "keel.demo:polite" → (absent)',
                "rewards.keel.demo.polite.weight: 0.1 → (absent)",
                'rewards.keel.demo.polite.template: "auto" → (absent)',
                f"input reward keel.demo.polite: keel {VERSION} → (absent)",
            ],
        ),
        (
            "ppo.reward=[{model: reward}, {function: 'keel.demo:polite', weight: 0.5}]",
            "evaluate",
            ["rewards.keel.demo.polite.weight: 0.1 → 0.5"],
        ),
        (
            "ppo.reward=[{model: reward, label: 2, max_tokens: 9}, {function: 'keel.demo:polite', weight: 0.1}]",
            "ppo",
            ["rewards.reward.label: (absent) → 2", "rewards.reward.max_tokens: (absent) → 9"],
        ),
        (
            "ppo.reward=[{model: reward, template: pair}, {function: 'keel.demo:terse', name: keel.demo.polite,"
            " weight: 0.1}]",
            "evaluate",
            [
                'rewards.reward.template: "auto" → "pair"',
                'rewards.keel.demo.polite.function: "keel.demo:polite" → "keel.demo:terse"',
            ],
        ),
        (
            "ppo.reward=[{model: reward}, {function: 'keel.demo:polite', weight: 0.1, workers: 2, timeout: 1,"
            " on_error: none}]",
            "ppo",
            [],
        ),
        ("sft.checkpoint_every=9", "sft", []),
        ("ppo.checkpoint_every=9", "ppo", []),
        ("device=auto", "ppo", []),
        ("name=other", "ppo", []),
        ("sft.lr=1e-4", "ppo", []),  # that reaches ppo through the model it reads
        ("model.scratch.hidden=32", "ppo", []),
    ],
)
def test_settings(override: str, stage: str, difference: list[str], made: Path) -> None:
    found = changed(tiny_recipe(), tiny_recipe([override]), stage, made)
    assert found == difference


def test_how_long_people_are_waited_for_plays_no_part(made: Path) -> None:
    def asking(more: str) -> Recipe:
        return tiny_recipe([f"collect.annotator={{people: {{project: talk{more}}}}}"])

    assert changed(asking(""), asking(", database: other.db, enough: 0.5, wait: false"), "collect", made) == []
    assert changed(asking(""), asking(", round: 2"), "collect", made) == ["collect.annotator.people.round: 1 → 2"]


def test_data_counts_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("prompts.jsonl", "~/prompts.jsonl"):
        recipe = recipe_of(ppo={**PPO, "prompts": path})
        file = tmp_path / "prompts.jsonl"
        file.write_text('{"prompt": "a"}\n')
        before = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
        file.write_text('{"prompt": "b"}\n')
        after = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
        (line,) = differences(before, after)
        assert line.startswith("input ppo.prompts: ")
    hub = recipe_of(ppo={**PPO, "prompts": {"path": "owner/prompts", "split": "test"}})
    assert stage_identity(hub, "ppo", stage_inputs(hub, RUN, "ppo")).inputs["ppo.prompts"] == "hub:owner/prompts:test"


def test_a_folder_counts_by_its_data_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "README").write_text("one")

    def found(path: Path) -> str:
        recipe = recipe_of(ppo={**PPO, "prompts": str(path)})
        return stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo")).inputs["ppo.prompts"]

    seen = [found(tmp_path)]
    assert found(tmp_path / "*.csv") == seen[0]
    assert found(tmp_path / "a.csv") == hashlib.sha256(b"prompt\na\n").hexdigest()
    (tmp_path / "README").write_text("two")
    assert found(tmp_path) == seen[0]
    (tmp_path / "a.csv").write_text("prompt\nb\n")
    seen.append(found(tmp_path))
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    seen.append(found(tmp_path))
    (tmp_path / "c.csv").write_text("prompt\nc\n")
    seen.append(found(tmp_path))
    assert len(set(seen)) == 4


def test_the_function_that_maps_rows_counts_by_its_source() -> None:
    data = {"path": "owner/prompts", "map": "keel.demo:polite"}
    recipe = recipe_of(ppo={**PPO, "prompts": data})
    identity = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
    assert identity.inputs["ppo.prompts"] == f"hub:owner/prompts:train through keel {VERSION}"


def test_a_function_counts_by_its_modules_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "def f(prompts, responses, rows):\n    return [{}] * len(responses)\n"
    recipe = recipe_of(ppo={"prompts": "prompts.jsonl", "reward": [{"function": "my_taste_of_inputs:f"}]})
    hashes = []
    for value in ("0.0", "1.0"):
        (tmp_path / "my_taste_of_inputs.py").write_text(source.format(value))
        sys.modules.pop("my_taste_of_inputs", None)
        identity = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
        hashes.append(identity.inputs["reward my_taste_of_inputs.f"])
    sys.modules.pop("my_taste_of_inputs")
    assert hashes[0] != hashes[1]
    assert (
        stage_identity(tiny_recipe(), "sft", stage_inputs(tiny_recipe(), RUN, "sft"))
        .inputs["sft.data"]
        .startswith("keel ")
    )


def test_a_model_counts_by_its_contents_and_a_hub_name_by_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = hash_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert hash_model(str(tmp_path)) != before
    assert hash_model("hub/base") == "hub:hub/base"
    assert hash_model("gpt2") == "hub:gpt2"  # one of the old names, without an owner


def test_an_adapter_counts_with_its_base(tmp_path: Path) -> None:
    for name, base in (("base", None), ("first", "../base"), ("second", "../first"), ("hubs", "owner/name")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": base})
        if base is not None:
            (tmp_path / name / "adapter_config.json").write_text(config)
    names = ("base", "first", "second", "hubs")
    before = [hash_model(str(tmp_path / name)) for name in names]
    assert len(set(before)) == 4
    (tmp_path / "base" / "model.safetensors").write_bytes(b"others")
    after = [hash_model(str(tmp_path / name)) for name in names]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, False, True]


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere", "runs/other/sft/model"])
def test_a_path_where_no_model_is_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=f"^there is no model directory {source}; give a directory or a hub name"):
        hash_model(source)


def test_a_chat_template_counts_in_every_stage_by_its_contents(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("one")
    recipe = recipe_of(model={"base": "hub/base", "chat_template": str(template)}, ppo=PPO)
    plain = recipe_of(ppo=PPO)
    (setting, contents) = changed(plain, recipe, "ppo")
    assert setting.startswith("model.chat_template: ")
    assert contents.startswith("input chat_template: (absent) → ")
    before = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
    template.write_text("two")
    after = stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))
    (line,) = differences(before, after)
    assert line.startswith("input chat_template: ")


def test_a_function_of_a_notebook_is_known_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's module has no file; its cells are found where the interpreter keeps them."""
    notebook = ModuleType("notebook_of_a_user")
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    recipe = recipe_of(ppo={**PPO, "reward": [{"function": "notebook_of_a_user:reward"}]})
    hashes = []
    for number, weight in enumerate((1, 2, 2)):
        source, name = f"def reward(prompts, responses, rows):\n    return [{weight}.0]\n", f"<cell {number}>"
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(keepends=True), name))
        exec(compile(source, name, "exec"), vars(notebook))
        hashes.append(
            stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo")).inputs["reward notebook_of_a_user.reward"]
        )
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_change_in_any_source_makes_another_stage(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for file in files:
        file.write_text("{}")
    data = [str(file) for file in files]
    one = recipe_of(sft={"data": data})
    heavier = recipe_of(sft={"data": [data[0], {"path": data[1], "weight": 2}]})
    assert changed(one, heavier, "sft") == ["sft.data.1.weight: 1.0 → 2.0"]
    before = stage_identity(one, "sft", stage_inputs(one, RUN, "sft"))
    files[1].write_text("{} ")
    after = stage_identity(one, "sft", stage_inputs(one, RUN, "sft"))
    (difference,) = differences(before, after)
    assert difference.startswith("input sft.data[1]: ")


def test_the_judge_counts_by_what_it_is_and_not_by_where_it_lies(tmp_path: Path) -> None:
    def identity(folder: str, content: str, **more: Any) -> Identity:
        path = tmp_path / folder / "judge"
        path.mkdir(parents=True)
        (path / "weights").write_text(content)
        recipe = recipe_of(ppo={**PPO, "evaluate": {"judge": {"model": str(path), **more}}})
        return stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo"))

    one = identity("one", "a")
    assert one == identity("elsewhere", "a")
    assert differences(one, identity("other weights", "b"))
    assert differences(one, identity("read otherwise", "a", max_tokens=9))
    without = recipe_of(ppo=PPO)
    assert differences(one, stage_identity(without, "ppo", stage_inputs(without, RUN, "ppo")))


def test_the_recipes_own_reward_model_may_judge_another_reward() -> None:
    ppo = {**PPO, "evaluate": {"judge": {"model": "reward"}, "stop_at_peak": 2}}
    recipe = recipe_of(ppo=ppo, reward={"data": "pairs.jsonl"})
    judge = stage_inputs(recipe, RUN, "ppo").judge
    assert judge is not None
    assert judge.model == str(RUN / "reward" / "model")


def test_when_an_alarm_is_said_changes_no_result() -> None:
    both = [recipe_of(ppo={**PPO, "evaluate": {"alarm_after": after}}) for after in (1, 5)]
    one, other = (stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo")) for recipe in both)
    assert one == other


def test_a_reward_models_template_counts_by_its_contents(tmp_path: Path) -> None:
    file = tmp_path / "judge.jinja"
    recipe = recipe_of(ppo={**PPO, "reward": [{"model": "hub/judge", "template": str(file)}]})
    hashes = []
    for text in ("one", "two"):
        file.write_text(text)
        hashes.append(stage_identity(recipe, "ppo", stage_inputs(recipe, RUN, "ppo")).inputs["template of judge"])
    assert hashes[0] != hashes[1]
