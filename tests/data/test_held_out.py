"""Prompts that ppo is measured on: none is found missing before anything is done, and what is named mends it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from keel.config.data import DataConfig
from keel.config.recipe import Recipe, apply_override, parse_recipe
from keel.data.held_out import require_held_out, without_held_out
from keel.data.load import load_prompts
from keel.errors import UserError


def prompts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def tree(given: Any, **ppo: Any) -> dict[str, Any]:
    stage = {"prompts": given, "reward": [{"function": "keel.demo:polite"}], **ppo}
    return {"name": "a", "model": {"base": "model"}, "ppo": stage}


def recipe(given: Any, **ppo: Any) -> Recipe:
    return parse_recipe(tree(given, **ppo), "test")


def held_out(config: DataConfig) -> int:
    return len(load_prompts(config).validation)


@pytest.fixture
def few(tmp_path: Path) -> str:
    """Of these 24 none falls to a share of 0.05, and some to 0.2."""
    return prompts(tmp_path / "my few, prompts.jsonl", [f"Once upon a time, {n}" for n in range(24)])


def test_what_is_named_holds_some_out(few: str) -> None:
    for given in (few, {"path": few, "weight": 2.0}):
        assert held_out(DataConfig.model_validate(given)) == 0
        found = without_held_out(recipe(given))
        assert found is not None
        assert found.said == f"none of the 24 in {few} falls into the share that is held out (0.05)"
        option, setting = shlex.split(found.mend.partition(" with ")[2].partition(", or name others")[0])
        assert option == "--set"
        changed = tree(given)
        apply_override(changed, setting)
        mended = parse_recipe(changed, "test")
        assert mended.ppo is not None
        assert isinstance(mended.ppo.prompts, DataConfig)
        assert 0 < held_out(mended.ppo.prompts) < 24
        assert mended.ppo.prompts.weight == (1.0 if given == few else 2.0)
        assert without_held_out(mended) is None


def test_the_whole_sentence(few: str) -> None:
    with pytest.raises(UserError) as caught:
        require_held_out(recipe(few))
    assert str(caught.value).startswith("ppo has no held-out prompts: none of the 24 in ")
    assert str(caught.value).endswith(", or name others with --set ppo.evaluate.prompts=FILE")


def test_prompts_of_their_own_need_none_held_out(few: str) -> None:
    assert without_held_out(recipe(few, evaluate={"prompts": few})) is None
    assert without_held_out(parse_recipe({"name": "a", "model": {"base": "b"}, "sft": {"data": "c"}}, "test")) is None


def test_one_source_that_holds_some_out_is_enough(few: str) -> None:
    assert without_held_out(recipe([few, {"path": few, "validation": 0.5}])) is None
    found = without_held_out(recipe([few, {"path": few, "validation": 0}]))
    assert found is not None
    assert found.said == f"none of the 48 in {few}, {few} falls into the share that is held out (0.05 and 0)"
    assert found.mend.startswith("raise `validation` of source 0 of ppo.prompts to 0.")


def test_a_single_prompt_cannot_be_divided(tmp_path: Path) -> None:
    found = without_held_out(recipe({"path": prompts(tmp_path / "one.jsonl", ["a", "a"]), "validation": 0}))
    assert found is not None
    assert found.mend == "give more prompts, or name others with --set ppo.evaluate.prompts=FILE"


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        without_held_out(recipe(str(tmp_path / "gone.jsonl")))
    (tmp_path / "odd.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UserError, match=r"odd\.jsonl"):
        without_held_out(recipe(str(tmp_path / "odd.jsonl")))
