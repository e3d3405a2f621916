"""The demo's recipe, for either taste."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keel.config.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent / "demo.yaml"
_TASTE_KEYS = ("collect.annotator.script", "ppo.evaluate.utility", "evaluate.utility")


def demo_recipe(taste: str, overrides: Sequence[str] = ()) -> Recipe:
    """`demo.yaml` with the annotator and the true utility of one taste (`polite` or `terse`), then the overrides."""
    chosen = [f"{key}=keel.demo:{taste}" for key in _TASTE_KEYS]
    return load_recipe(RECIPE, [f"name={taste}", f"collect.annotator.name={taste}", *chosen, *overrides])
