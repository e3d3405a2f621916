"""A recipe to change: what the tests of the configuration start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from keel.config.recipe import parse_recipe
from keel.errors import UserError

TEXT = """
name: small
model: {base: some/model}
sft: {data: demos.jsonl, lr: 1e-4}
collect: {prompts: prompts.jsonl, annotator: {script: "rules:polite"}}
reward: {}
ppo: {prompts: prompts.jsonl, kl: {kind: adaptive, target: 6}}
evaluate: {prompts: heldout.jsonl}
"""
PPO = {"prompts": "p.jsonl"}
SFT = {"data": "d.jsonl"}


def tree(**stages: Any) -> dict[str, Any]:
    """The recipe above with some keys of the top level replaced; None takes one away."""
    merged = yaml.safe_load(TEXT) | stages
    return {key: value for key, value in merged.items() if value is not None}


def refusal(**stages: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(tree(**stages), "r.yaml")
    return str(caught.value)


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path
