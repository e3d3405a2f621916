"""A recipe of every stage, on a model of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keel.config.recipe import Recipe, apply_override, parse_recipe


def tiny_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """All stages in seconds; several checkpoints and evaluations in each."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "device": "cpu",
        "model": {"scratch": {"hidden": 16, "layers": 1, "heads": 2, "vocab": 300, "context": 128}},
        "sft": {
            "data": {"function": "keel.demo:demonstrations", "limit": 120},
            "epochs": 2,
            "batch": 16,
            "lr": 3e-3,
            "validate_every": 5,
            "checkpoint_every": 3,
        },
        "collect": {
            "prompts": {"function": "keel.demo:prompts", "limit": 200},
            "annotator": {"script": "keel.demo:polite", "temperature": 0.5},
            "sampling": {"max_new_tokens": 12},
        },
        "reward": {
            "batch": 32,
            "lr": 3e-3,
            "checkpoint_every": 2,
            "validate_every": 3,
            "normalise_samples": 32,
            "normalise_sampling": {"max_new_tokens": 12},
        },
        "direct": {"batch": 32, "lr": 3e-3, "checkpoint_every": 2, "validate_every": 3},
        "ppo": {
            "prompts": {"function": "keel.demo:prompts", "limit": 100},
            "iterations": 6,
            "rollout_batch": 16,
            "sampling": {"max_new_tokens": 12},
            "reward": [{"model": "reward"}, {"function": "keel.demo:polite", "weight": 0.1}],
            "kl": {"kind": "adaptive", "coef": 0.1, "target": 1.0, "horizon": 200},
            "update": {"lr": 1e-3, "epochs": 2, "minibatches": 2, "token_budget": 256},
            "evaluate": {"every": 2, "count": 4, "utility": "keel.demo:polite"},
            "max_truncated": 1.0,
            "checkpoint_every": 1,
        },
        "evaluate": {
            "prompts": {"function": "keel.demo:heldout", "limit": 8},
            "demonstrations": {"function": "keel.demo:heldout", "limit": 8},
            "utility": "keel.demo:polite",
            "measures": {"on_point": "keel.demo:on_point"},
            "sampling": {"max_new_tokens": 12},
            "per_prompt": 2,
            "frontier_samples": 4,
            "bootstrap": 100,
        },
    }
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, "tiny recipe")
