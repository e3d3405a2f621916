"""What docs/guides/rewards.md says holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from keel import rewards
from keel.config.data import DataConfig
from keel.config.recipe import parse_recipe
from keel.config.rewards import RewardSource
from keel.data.convert import PROMPTS, convert
from keel.data.read import Row
from keel.references import resolve
from keel.user_functions import checked

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "rewards.md").read_text(encoding="utf-8")
RECIPE: dict[str, Any] = {"name": "x", "model": {"base": "a/b"}, "reward": {"data": "pairs.jsonl"}}


def test_the_recipe_shown_is_a_recipe() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    recipe, ensembles = (parse_recipe({**RECIPE, **yaml.safe_load(block)}, "guide") for block in blocks)
    assert ensembles.reward is not None
    assert ensembles.reward.ensemble is not None
    assert recipe.ppo is not None
    assert [source.logged_as for source in recipe.ppo.reward] == [
        "reward",
        "judge",
        "my_rules.no_repetition",
        "keel.rewards.number_match",
        "jury",
    ]


def test_every_key_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.M)) - {"pair", "text"}
    assert explained == set(RewardSource.model_fields) - {"model", "function", "name", "weight"}
    assert "`name:`" in GUIDE


def test_the_functions_shown_run() -> None:
    first, second = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    scope: dict[str, Any] = {}
    exec(first, scope)
    no_repetition = checked("my_rules:no_repetition", scope["no_repetition"])
    assert no_repetition(["p"] * 3, ["more more", "one two one", "one"], [{}] * 3) == [0.0, 1.0, None]
    exec(second, scope)
    matches = checked("my_rules:solution_matches", scope["solution_matches"])
    assert matches(["p"] * 3, ["it is 42"] * 3, [{"solution": 42}, {"solution": "41"}, {}]) == [1.0, 0.0, None]


def test_the_answers_shown_reach_the_function() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", GUIDE, re.S)
    rows = []
    for number, line in enumerate(block.splitlines()):
        (one,) = convert(Row("guide", number, json.loads(line)), PROMPTS, DataConfig(path="guide"))
        assert one.record is not None
        rows.append(one.record.extra)
    prompts = ["p", "p"]
    assert rewards.number_match(prompts[:1], ["6 × 7 = 42."], rows[:1]) == [1.0]
    assert rewards.contains_answer(prompts, ["42", "It is the city of Paris."], rows) == [1.0, 1.0]
    assert rewards.exact_match(prompts, ["It is 42", "paris"], rows) == [0.0, 1.0]


def test_the_table_names_the_ready_made_functions() -> None:
    named = re.findall(r"^\| `(keel\.rewards:\w+)` \|", GUIDE, re.M)
    assert [resolve(name) for name in named] == [rewards.exact_match, rewards.contains_answer, rewards.number_match]
