"""What a recipe's file says, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from keel.config.data import DataConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.model import ModelConfig
from keel.config.ppo import AdvantageConfig, PPOConfig
from keel.config.recipe import Recipe, load_recipe, parse_recipe
from keel.config.reward import RewardConfig
from keel.config.sampling import RLSamplingConfig, SamplingConfig
from keel.demo.recipe import RECIPE as DEMO
from keel.errors import UserError
from tests.config.support import PPO, refusal, tree, written


def test_reads_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    assert (recipe.name, recipe.seed, recipe.model.base) == ("small", 0, "some/model")
    assert recipe.sft is not None
    assert recipe.sft.data == DataConfig(path="demos.jsonl")
    assert recipe.sft.lr == 1e-4  # YAML reads 1e-4, without a dot, as text
    assert recipe.reward is not None
    assert recipe.reward.data == "collect"
    assert recipe.ppo is not None
    assert [source.logged_as for source in recipe.ppo.reward] == ["reward"]
    assert recipe.ppo.kl.target == 6.0


def test_a_stage_that_is_not_named_is_not_run() -> None:
    recipe = parse_recipe({"name": "only", "model": {"base": "m"}, "sft": {"data": "d.jsonl"}}, "r.yaml")
    assert [recipe.collect, recipe.reward, recipe.ppo, recipe.evaluate] == [None] * 4


@pytest.mark.parametrize("recipe", [parse_recipe(tree(), "r.yaml"), load_recipe(DEMO)])
def test_a_recipe_written_out_in_full_reads_back(recipe: Recipe) -> None:
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), "r.yaml") == recipe


def test_the_recipe_is_frozen() -> None:
    recipe: Any = parse_recipe(tree(), "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_an_estimator_brings_what_it_needs() -> None:
    def ppo(**keys: Any) -> PPOConfig:
        config = parse_recipe(tree(ppo=PPO | keys), "r.yaml").ppo
        assert config is not None
        return config

    rloo = ppo(advantage={"kind": "rloo"})
    assert (rloo.critic, rloo.per_prompt, rloo.advantage.whitens) == ("none", 4, False)
    to_go = ppo(advantage={"kind": "reward_to_go"})
    assert (to_go.critic, to_go.per_prompt, to_go.advantage.whitens) == ("none", 1, True)
    gae = ppo()
    assert (gae.critic, gae.per_prompt, gae.advantage.whitens) == ("head", 1, True)
    assert ppo(advantage=AdvantageConfig(kind="grpo")).per_prompt == 4
    assert ppo(update={"loss": "policy_gradient"}).update.minibatches == 1
    assert PPOConfig.model_validate(rloo.model_dump(mode="json")) == rloo  # as a run writes it out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [small", "is not valid YAML"),
        ("name: small\n\tmodel: 3", "is not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("{[1]: 2}", "is not valid YAML"),
        ("", "should be a mapping of keys such as `name:`, `model:`, `sft:`"),
        ("- name: small", "should be a mapping of keys"),
        ("just a sentence", "should be a mapping of keys"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, text))
    assert sentence in str(caught.value)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no recipe .*none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a directory; give the recipe's YAML file"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(written(tmp_path) / "below_a_file.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(UserError, match="is not valid YAML"):
        load_recipe(tmp_path / "latin.yaml")


def test_what_is_judged_is_sampled_as_ppo_samples() -> None:
    stages = {"ppo": PPO | {"sampling": {"max_new_tokens": 7, "temperature": 0.8}}, "evaluate": {"prompts": "p"}}
    alike = parse_recipe(tree(**stages), "r.yaml")
    assert alike.ppo is not None
    assert alike.evaluate is not None
    assert alike.evaluate.sampling == alike.ppo.sampling
    own = parse_recipe(tree(**stages | {"evaluate": {"prompts": "p", "sampling": {"max_new_tokens": 9}}}), "r.yaml")
    assert own.evaluate is not None
    assert (own.evaluate.sampling.max_new_tokens, own.evaluate.sampling.temperature) == (9, 0.8)
    assert parse_recipe(alike.model_dump(mode="json"), "recipe.json") == alike


RL = {"max_new_tokens": 12, "temperature": 0.8, "stop": (".",)}


def test_evaluate_takes_each_key_that_it_lacks_from_ppo() -> None:
    ppo = PPO | {"sampling": RL, "max_prompt_tokens": 99, "long_prompts": "cut"}
    recipe = parse_recipe(tree(ppo=ppo, evaluate={"prompts": "p", "sampling": {"batch": 8}}), "r.yaml")
    assert recipe.evaluate is not None
    assert recipe.evaluate.sampling == RLSamplingConfig(max_new_tokens=12, temperature=0.8, stop=(".",), batch=8)
    assert (recipe.evaluate.max_prompt_tokens, recipe.evaluate.long_prompts) == (99, "cut")
    own = parse_recipe(tree(ppo=ppo, evaluate={"prompts": "p", "max_prompt_tokens": 7, "long_prompts": "drop"}), "r")
    assert own.evaluate is not None
    assert (own.evaluate.max_prompt_tokens, own.evaluate.long_prompts) == (7, "drop")
    assert parse_recipe(own.model_dump(mode="json"), "recipe.json") == own


def test_scores_are_centred_on_ppo_sampling_else_on_collect_sampling() -> None:
    collect = {"prompts": "p", "annotator": {"script": "a:b"}, "sampling": {"top_k": 5}}
    stages = {"collect": collect, "reward": {"normalise_sampling": {"batch": 8}}}
    after_ppo = parse_recipe(tree(ppo=PPO | {"sampling": RL}, **stages), "r.yaml")
    after_collect = parse_recipe(tree(ppo=PPO, **stages), "r.yaml")
    assert after_ppo.reward is not None
    assert after_collect.reward is not None
    expected = SamplingConfig(max_new_tokens=12, temperature=0.8, stop=(".",), batch=8)
    assert after_ppo.reward.normalise_sampling == expected
    assert after_collect.reward.normalise_sampling == SamplingConfig(top_k=5, batch=8)


@pytest.mark.parametrize("stages", ["typed", "typed sampling"])
def test_typed_stages_make_the_same_recipe_as_the_file(stages: str) -> None:
    ppo = {"prompts": "p", "sampling": RL, "max_prompt_tokens": 99}
    evaluate = {"prompts": "p", "sampling": {"batch": 8}}
    file = parse_recipe(tree(ppo=ppo, evaluate=evaluate), "r.yaml")
    typed: dict[str, Any]
    if stages == "typed":
        typed = {
            "ppo": PPOConfig.model_validate(ppo),
            "evaluate": EvaluateConfig.model_validate(evaluate),
            "reward": RewardConfig(),
            "model": ModelConfig(base="some/model"),
        }
    else:
        typed = {"ppo": ppo | {"sampling": RLSamplingConfig.model_validate(RL)}, "evaluate": evaluate}
    assert Recipe.model_validate(tree() | typed) == file


@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
def test_sampling_that_is_no_mapping_is_named(stage: str) -> None:
    stages: dict[str, Any] = {"ppo": PPO | {"sampling": RL}, "evaluate": {"prompts": "p"}}
    stages[stage] = stages[stage] | {"sampling": "greedy"}
    assert refusal(**stages).startswith(f"r.yaml: `{stage}.sampling` should be a mapping of keys, not 'greedy'")


def test_an_adaptive_coefficient_cannot_fall_below_zero() -> None:
    """err is at least -0.2, so n responses over a horizon below n / 5 would; n is refused already."""
    with pytest.raises(UserError, match=r"kl\.horizon \(63\) counts responses; give at least rollout_batch \(64\)"):
        parse_recipe(tree(ppo=PPO | {"kl": {"kind": "adaptive", "target": 6, "horizon": 63}}), "r.yaml")
