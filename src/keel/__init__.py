"""Keel: align a language model with what people prefer, on a KL leash.

The names below are all that a library user needs; each is loaded when it is first asked for. `__init__.pyi`
says the same to type checkers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "keel.annotate.base": ("Annotator", "Judgement", "Pair"),
    "keel.config.collect": ("AnnotatorConfig", "CollectConfig", "PeopleConfig"),
    "keel.config.data": ("DataConfig",),
    "keel.config.direct": ("DirectConfig",),
    "keel.config.evaluate": ("EvaluateConfig",),
    "keel.config.kl": ("KLConfig",),
    "keel.config.model": ("LoRAConfig", "ModelConfig", "ScratchConfig"),
    "keel.config.ppo": ("AdvantageConfig", "HeldOutConfig", "PPOConfig", "UpdateConfig"),
    "keel.config.recipe": ("Recipe", "load_recipe"),
    "keel.config.reward": ("RewardConfig",),
    "keel.config.rewards": ("RewardSource",),
    "keel.config.sampling": ("RLSamplingConfig", "SamplingConfig"),
    "keel.config.servers": ("ServersConfig",),
    "keel.config.sft": ("SFTConfig",),
    "keel.config.shaping": ("ShapingConfig",),
    "keel.errors": ("UserError",),
    "keel.library": ("StageResult", "collect", "direct", "evaluate", "ppo", "run", "sft", "train_reward"),
    "keel.references": ("reference_to",),
    "keel.runs.callbacks": ("Callback", "StageInfo"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'keel' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
