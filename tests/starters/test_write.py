from __future__ import annotations

import yaml

from keel.starters.plan import Key
from keel.starters.write import recipe_text

KEYS = (
    Key("name", "yes", "a word that YAML would read as true"),
    Key("model", (Key("base", "o'er: #there", "odd"), Key("none", None)), "a section"),
    Key("lr", 3e-6),
    Key("data", {"path": "ä.jsonl", "limit": 2}),
    Key("reward", [{"function": "my_rules:polite"}, {"model": "reward", "weight": 0.5}], "x" * 300),
)


def test_what_is_written_reads_back() -> None:
    assert yaml.safe_load(recipe_text(KEYS, "mine.yaml")) == {
        "name": "yes",
        "model": {"base": "o'er: #there", "none": None},
        "lr": 3e-6,
        "data": {"path": "ä.jsonl", "limit": 2},
        "reward": [{"function": "my_rules:polite"}, {"model": "reward", "weight": 0.5}],
    }


def test_each_reason_stands_beside_its_key_and_the_schema_first() -> None:
    lines = recipe_text(KEYS, "mine.yaml").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert "keel run mine.yaml" in lines[3]
    assert next(line for line in lines if line.startswith("model:")).endswith("# a section")
    assert next(line for line in lines if line.startswith("  base:")).endswith("# odd")
    assert "lr: 3.0e-06" in lines
    assert "data: {path: ä.jsonl, limit: 2}" in lines  # in the order in which it is told
