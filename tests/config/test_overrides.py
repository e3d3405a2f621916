"""`--set KEY=VALUE`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from keel.config.data import DataConfig
from keel.config.recipe import apply_override, load_recipe
from keel.errors import UserError
from tests.config.support import PPO, TEXT, tree, written


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("ppo.kl.coef=0.5", 0.5),
        ("ppo.kl.coef=1e-3", "1e-3"),
        ("sft.data=my file.jsonl", "my file.jsonl"),
        ("sft.data={path: a, limit: 3}", {"path": "a", "limit": 3}),
        ('ppo.reward=[{function: "a:b=c"}]', [{"function": "a:b=c"}]),
        ("sft=null", None),
        ("sft=", None),
        ("a.b.c.d=true", True),
        ("name='3'", "3"),
    ],
)
def test_override_sets_a_yaml_value(override: str, value: Any) -> None:
    root = tree()
    apply_override(root, override)
    node: Any = root
    for part in override.split("=")[0].split("."):
        node = node[part]
    assert node == value


def test_override_leaves_everything_beside_it() -> None:
    root = tree()
    apply_override(root, "ppo.kl.coef=0.5")
    assert root["ppo"] == {"prompts": "prompts.jsonl", "kl": {"kind": "adaptive", "target": 6, "coef": 0.5}}
    assert {key: value for key, value in root.items() if key != "ppo"} == {
        key: value for key, value in tree().items() if key != "ppo"
    }


def test_override_makes_levels_in_an_empty_one() -> None:
    root: dict[str, Any] = {"ppo": None}
    apply_override(root, "ppo.kl.coef=0.5")
    assert root == {"ppo": {"kl": {"coef": 0.5}}}


def test_override_of_an_alias_leaves_its_anchor(tmp_path: Path) -> None:
    """YAML hands out one object for both, so a careless write would change the other stage too."""
    text = TEXT.replace("ppo: {", "ppo: {sampling: &shared {temperature: 0.9}, ")
    text = text.replace("evaluate: {", "evaluate: {sampling: *shared, ")
    recipe = load_recipe(written(tmp_path, text), ["ppo.sampling.temperature=0.5"])
    assert recipe.ppo is not None
    assert recipe.evaluate is not None
    assert (recipe.ppo.sampling.temperature, recipe.evaluate.sampling.temperature) == (0.5, 0.9)


@pytest.mark.parametrize("override", ["ppo.kl.coef", "=3", "ppo..coef=1", ".seed=1", "ppo.=1", ""])
def test_override_of_another_form(override: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--set {override!r} should look like ppo.kl.coef=0.1")):
        apply_override(tree(), override)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed.x=1", "--set seed.x: `seed` has no keys in the recipe, it is 7; set all of it"),
        ("sft.data.limit=3", "--set sft.data.limit: `data` has no keys in the recipe, it is 'demos.jsonl'"),
        ("sft.data.limit=3", "; set all of it: --set 'sft.data={path: demos.jsonl, limit: 3}'"),
        ("ppo.reward.0.weight=3", "--set ppo.reward.0.weight: `reward` has no keys in the recipe, it is [{"),
        ("ppo.kl={coef: 3", "--set ppo.kl: '{coef: 3' is not a YAML value; put it in quotes"),
    ],
)
def test_override_that_cannot_be_made(override: str, sentence: str) -> None:
    root = tree(seed=7, ppo=PPO | {"reward": [{"model": "reward"}]})
    with pytest.raises(UserError) as caught:
        apply_override(root, override)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("source", "limit"), [("demos.jsonl", 3), ("my_rules:rows", 4)])
def test_what_a_refused_override_names_works(source: str, limit: int, tmp_path: Path) -> None:
    text = TEXT.replace("demos.jsonl", source)
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, text), [f"sft.data.limit={limit}"])
    option, setting = shlex.split(str(caught.value).partition("set all of it: ")[2])
    assert option == "--set"
    recipe = load_recipe(written(tmp_path, text), [setting])
    assert recipe.sft is not None
    assert isinstance(recipe.sft.data, DataConfig)
    assert (recipe.sft.data.name, recipe.sft.data.limit) == (source, limit)


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["ppo.kl.target=3", "ppo.kl.target=4", "sft.lr=2e-3"])
    assert recipe.ppo is not None
    assert recipe.sft is not None
    assert (recipe.ppo.kl.target, recipe.sft.lr) == (4.0, 2e-3)
    with pytest.raises(UserError, match=r"unknown key `ppo\.kl\.coeff`; did you mean `coef`\?"):
        load_recipe(written(tmp_path), ["ppo.kl.coeff=0.1"])
