from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keel.compare.algorithms import ALGORITHMS, Algorithm, algorithm
from keel.compare.plan import base_recipe, laid_over, plan, score_scale
from keel.config.recipe import Recipe, parse_recipe
from keel.demo.recipe import demo_recipe
from keel.errors import UserError
from keel.runs.files import write_json


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A comparison whose base run says that a score of 1 is 2.5 logits."""
    (tmp_path / "base" / "reward").mkdir(parents=True)
    write_json(tmp_path / "base" / "reward" / "done.json", {"score_scale": 2.5})
    return tmp_path


def recipe_of(out: Path, name: str) -> Recipe:
    (first, *_) = plan(demo_recipe("polite"), [name], [3], out)
    return parse_recipe(first.recipe, "planned")


def test_the_base_makes_what_all_share_and_nothing_else() -> None:
    tree = base_recipe(demo_recipe("polite"))
    assert tree is not None
    assert set(tree) == {"name", "seed", "device", "model", "sft", "collect", "reward"}
    assert parse_recipe(tree, "base").model.scratch is not None
    nothing = ["sft=null", "collect=null", "reward=null", "model={base: m}", "ppo.reward=[{model: r}]"]
    assert base_recipe(demo_recipe("polite", nothing)) is None


@pytest.mark.parametrize("name", [*ALGORITHMS, "best_of_16"])
def test_every_algorithm_makes_a_recipe_that_starts_from_the_base(name: str, out: Path) -> None:
    recipe = recipe_of(out, name)
    assert (recipe.seed, recipe.model.base, recipe.model.scratch) == (3, str(out / "base" / "sft" / "model"), None)
    assert recipe.evaluate is not None
    assert recipe.evaluate.utility == "keel.demo:polite"
    assert recipe.evaluate.sampling.max_new_tokens == 40  # ppo's, in a recipe without ppo too
    assert [source.model for source in recipe.evaluate.reward or ()] == [str(out / "base" / "reward" / "model")]
    assert (recipe.sft, recipe.collect, recipe.reward) == (None, None, None)


def test_the_online_ones_keep_the_recipes_settings_and_differ_in_their_own(out: Path) -> None:
    rloo, ppo, dpo = (recipe_of(out, name).ppo for name in ("rloo", "ppo", "online_dpo"))
    assert rloo is not None
    assert ppo is not None
    assert dpo is not None
    assert (rloo.advantage.kind, rloo.per_prompt, rloo.critic) == ("rloo", 4, "none")
    assert (ppo.advantage.kind, ppo.per_prompt, ppo.critic) == ("gae", 1, "head")
    assert (dpo.update.loss, dpo.per_prompt) == ("dpo", 2)
    for config in (rloo, ppo, dpo):
        assert (config.iterations, config.rollout_batch, config.kl.coef, config.update.lr) == (60, 128, 0.2, 2e-4)


def test_what_an_algorithm_has_no_use_for_is_dropped() -> None:
    settings = {"critic": "network", "advantage": {"kind": "gae", "lam": 0.9}, "update": {"lr": 1.0, "value_clip": 0.3}}
    assert laid_over(settings, ALGORITHMS["rloo"]) == {
        "advantage": {"kind": "rloo"},
        "per_prompt": 4,
        "update": {"lr": 1.0},
    }
    plain = Algorithm("ppo", {"update": {"loss": "policy_gradient", "epochs": 1}}, ("update.clip_low",))
    made = laid_over({"update": {"lr": 1.0, "clip_low": 0.1, "epochs": 4}}, plain)
    assert made == {"update": {"lr": 1.0, "loss": "policy_gradient", "epochs": 1}}
    assert settings["critic"] == "network"  # what was given is left alone


def test_a_direct_method_gets_the_beta_of_the_same_optimum(out: Path) -> None:
    assert score_scale(out) == 2.5
    runs = {
        run.name: run.recipe["direct"]
        for run in plan(demo_recipe("polite"), ["dpo", "ipo", "simpo"], [0, 1], out, score_scale=2.5)
    }
    assert runs["dpo-0"]["beta"] == pytest.approx(0.2 * 2.5)
    assert runs["dpo-0-leash0.5"]["beta"] == pytest.approx(0.1 * 2.5)
    assert runs["dpo-0-leash2"]["beta"] == pytest.approx(0.4 * 2.5)
    assert runs["ipo-1"]["beta"] == pytest.approx(0.2 * 2.5 / 4)
    assert "beta" not in runs["simpo-0"]  # its own
    assert set(runs) == {
        "dpo-0", "dpo-0-leash0.5", "dpo-0-leash2", "dpo-1", "ipo-0", "ipo-0-leash0.5", "ipo-0-leash2", "ipo-1",
        "simpo-0", "simpo-1",
    }  # fmt: skip
    assert runs["dpo-0"]["data"] == str(out / "base" / "collect" / "comparisons" / "comparisons.jsonl")


def test_names_of_stages_become_the_bases_models(out: Path) -> None:
    changes = [
        "ppo.policy=sft",
        "ppo.reference=sft",
        "evaluate.policy=ppo",
        "ppo.critic=network",
        "ppo.critic_init=reward",
    ]
    (run,) = plan(demo_recipe("polite", changes), ["ppo"], [0], out)
    assert {run.recipe["ppo"][key] for key in ("policy", "reference")} == {str(out / "base" / "sft" / "model")}
    assert run.recipe["ppo"]["critic_init"] == str(out / "base" / "reward" / "model")
    assert "policy" not in run.recipe["evaluate"]


def test_a_plain_gradient_takes_one_step_at_a_higher_rate(out: Path) -> None:
    config = recipe_of(out, "a2c").ppo
    assert config is not None
    assert (config.update.epochs, config.update.minibatches) == (1, 1)
    assert config.update.lr == pytest.approx(5 * 2e-4)


@pytest.mark.parametrize(
    "change", ["ppo.kl={kind: adaptive, target: 2}", "ppo.reward=[{function: 'keel.demo:polite'}]"]
)
def test_a_beta_that_is_no_one_number_is_refused(change: str, out: Path) -> None:
    with pytest.raises(UserError, match="a direct method has ppo's optimum where"):
        plan(demo_recipe("polite", [change]), ["dpo"], [0], out)


def test_the_reward_models_weight_is_part_of_the_price(out: Path) -> None:
    (run, *_) = plan(demo_recipe("polite", ["ppo.reward=[{model: reward, weight: 4}]"]), ["dpo"], [0], out)
    assert run.recipe["direct"]["beta"] == pytest.approx(0.2 / 4)


def test_best_of_n_judges_the_base_at_several_n(out: Path) -> None:
    runs = plan(demo_recipe("polite"), ["best_of_16"], [0], out)
    counts: list[Any] = [run.recipe["evaluate"]["best_of"] for run in runs]
    assert counts == [16, 64, 4]
    assert {run.recipe["evaluate"]["policy"] for run in runs} == {str(out / "base" / "sft" / "model")}


def test_names_and_recipes_that_cannot_be_are_refused(out: Path) -> None:
    with pytest.raises(UserError, match=r"--algorithms: rlo is no algorithm; did you mean rloo\?"):
        algorithm("rlo")
    with pytest.raises(UserError, match="best_of_0 is no algorithm"):
        algorithm("best_of_0")
    with pytest.raises(UserError, match="needs a recipe with ppo and evaluate"):
        plan(demo_recipe("polite", ["ppo=null", "evaluate=null"]), ["ppo"], [0], out)
    changes = ["reward=null", "collect=null", "ppo.reward=[{function: 'keel.demo:polite'}]"]
    with pytest.raises(UserError, match="a direct method needs a reward stage, whose comparisons"):
        plan(demo_recipe("polite", changes), ["dpo"], [0], out)
