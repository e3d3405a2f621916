"""Where to start: learning rates and the leash by model size, each row with its source. `keel init` writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings for full tuning of models of at most `up_to` parameters."""

    up_to: float
    sft_lr: float
    reward_lr: float
    ppo_lr: float
    kl_coef: float
    token_budget: int  # padded tokens a micro-batch: memory, not the result
    source: str


_UNMEASURED = "; sft, reward: a starting point, not measured"

# Of every size: clip range .2, gamma 1, lambda .95, 4 epochs a rollout (the defaults of `config.ppo`).
# fmt: off
PRESETS = (
    Preset(1e7, 3e-3, 1e-3, 2e-4, 0.2, 8192, "measured: the demo, 0.9 million parameters (docs/lab.md)"),
    Preset(3e8, 1e-4, 5e-5, 1e-5, 0.05, 8192,
           "reward, ppo: Ziegler et al. 2019, GPT-2 of 124 million; sft: a starting point, not measured"),
    Preset(3e9, 2e-5, 1e-5, 3e-6, 0.05, 4096,
           "ppo: Huang et al. 2024, Pythia (3e-6 in every stage)" + _UNMEASURED),
    Preset(math.inf, 1e-5, 5e-6, 1e-6, 0.05, 2048,
           "ppo, kl: the published range for large models, 1e-6 to 5e-6 and .01 to .1" + _UNMEASURED),
)
# fmt: on

LORA_FROM = 3e8  # parameters from which adapters are proposed: a full copy of weights and moments gets heavy
LORA_LR_SCALE = 10.0  # adapters take about ten times the rate of full tuning (Schulman et al. 2025)


def preset_for(parameters: int) -> Preset:
    """The row of the table for a model with so many parameters."""
    return next(preset for preset in PRESETS if parameters <= preset.up_to)
