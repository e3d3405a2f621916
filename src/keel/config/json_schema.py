"""The recipe as JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

import json
from typing import Any

from keel.config.data import DataConfig
from keel.config.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what a recipe's file may hold.

    What no schema says, such as which keys contradict each other, is left to `load_recipe`.
    """
    schema = Recipe.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    mapping = definitions[DataConfig.__name__]
    definitions[DataConfig.__name__] = {
        "title": "DataConfig",
        "description": mapping["description"],
        "anyOf": [{"type": "string", "description": "a file, a hub name, or module:function"}, mapping],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Keel recipe",
    }


def schema_text() -> str:
    """The schema as it lies in a file."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
