"""The schema that editors read: current, and of one mind with the recipes that are there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from keel.config.json_schema import recipe_schema, schema_text
from tests.end_to_end.tiny import tiny_recipe

ROOT = Path(__file__).parents[2]
COPY = ROOT / "docs" / "recipe.schema.json"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> list[str]:
    """Keys that the schema does not know and values of another type: a plain reading of a part of JSON Schema."""
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root, path)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options is not None:
        every = [faults(value, option, root, path) for option in options]
        return min(every, key=lambda found: (len(found), -found[0].partition(":")[0].count("."))) if all(every) else []
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return [] if value in allowed else [f"{path}: {value!r} is none of {allowed}"]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    if kind in ("number", "integer"):
        wanted = (int,) if kind == "integer" else (int, float)
        return [] if isinstance(value, wanted) and not isinstance(value, bool) else [f"{path}: {value!r} is no {kind}"]
    if kind is not None and not isinstance(value, kinds[kind]):
        return [f"{path}: {value!r} is no {kind}"]
    if kind == "array":
        return [fault for item in value for fault in faults(item, schema.get("items", {}), root, f"{path}[]")]
    if kind == "object":
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found = [f"{path}.{key}: missing" for key in schema.get("required", ()) if key not in value]
        for key, inner in value.items():
            if key in known or isinstance(more, dict):
                found += faults(inner, known.get(key, more), root, f"{path}.{key}")
            elif more is False:
                found.append(f"{path}.{key}: unknown")
        return found
    return []


def test_the_copy_in_docs_is_current() -> None:
    current = COPY.read_text(encoding="utf-8") == schema_text()
    assert current, "the recipe's keys have changed: run `keel schema --out docs/recipe.schema.json`"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_keeps_to_it(path: Path) -> None:
    schema = recipe_schema()
    assert faults(yaml.safe_load(path.read_text(encoding="utf-8")), schema, schema) == []


def test_a_recipe_in_full_keeps_to_it() -> None:
    schema = recipe_schema()
    assert faults(tiny_recipe().model_dump(mode="json"), schema, schema) == []


@pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="jsonschema is not installed")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_by_the_library(path: Path) -> None:
    validate: Any = importlib.import_module("jsonschema").validate
    validate(yaml.safe_load(path.read_text(encoding="utf-8")), recipe_schema())


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": "d.jsonl"}}, None),
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": {"path": "d.jsonl", "limit": 3}}}, None),
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": 3}}, ".sft.data: 3 is no string"),
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": {"pth": "d"}}}, ".sft.data.pth: unknown"),
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": ["d.jsonl", {"path": "e", "weight": 2}]}}, None),
        ({"name": "a", "model": {"base": "b"}, "sft": {"data": ["d", {"pth": "e"}]}}, ".sft.data[].pth: unknown"),
        ({"name": "a", "model": {"base": "b"}, "sfd": {}}, ".sfd: unknown"),
        ({"name": "a", "sft": {"data": "d"}}, ".model: missing"),
        ({"name": "a", "model": {"base": "b"}, "ppo": {"prompts": "p", "kl": {"kind": "soft"}}}, ".ppo.kl.kind"),
    ],
)
def test_what_editors_will_mark(tree: dict[str, Any], fault: str | None) -> None:
    schema = recipe_schema()
    found = faults(tree, schema, schema)
    assert found == [] if fault is None else len(found) == 1 and found[0].startswith(fault)


def test_keys_have_descriptions_and_the_whole_a_title() -> None:
    schema = json.loads(schema_text())
    assert schema["title"] == "Keel recipe"
    assert "2020-12" in schema["$schema"]
    assert schema["$defs"]["PPOConfig"]["properties"]["rollout_batch"]["description"].startswith("responses")
