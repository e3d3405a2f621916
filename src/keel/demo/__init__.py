"""The embedded demo's world: a generated language, its data, and two scripted tastes with known utility."""

from __future__ import annotations

from keel.demo.rows import demonstrations, heldout, prompts
from keel.demo.tastes import on_point, polite, terse

__all__ = ["demonstrations", "heldout", "on_point", "polite", "prompts", "terse"]
