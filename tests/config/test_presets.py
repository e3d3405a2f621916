"""The table of presets keeps to what was published, and the guide shows the same one."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from keel.config.presets import PRESETS, preset_for

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "first-steps.md"


@pytest.mark.parametrize(
    ("parameters", "row"), [(1, 0), (10_000_000, 0), (10_000_001, 1), (135_000_000, 1), (7_000_000_000, 3)]
)
def test_a_models_row(parameters: int, row: int) -> None:
    assert preset_for(parameters) is PRESETS[row]


def test_large_models_keep_to_the_published_ranges() -> None:
    """Learning rate 1e-6 to 5e-6, KL coefficient .01 to .1."""
    for preset in PRESETS:
        if preset.up_to > 1e9:
            assert 1e-6 <= preset.ppo_lr <= 5e-6
            assert 0.01 <= preset.kl_coef <= 0.1


def test_smaller_models_take_larger_rates_and_ppo_the_smallest_of_a_row() -> None:
    for small, large in pairwise(PRESETS):
        assert small.up_to < large.up_to
        assert small.sft_lr > large.sft_lr
        assert small.reward_lr > large.reward_lr
        assert small.ppo_lr > large.ppo_lr
    for preset in PRESETS:
        assert preset.ppo_lr < preset.reward_lr <= preset.sft_lr
        assert preset.source
    assert PRESETS[-1].up_to == math.inf


def test_the_guide_shows_this_table() -> None:
    rows = [line.strip("| ").split(" | ") for line in GUIDE.read_text(encoding="utf-8").splitlines() if "|" in line]
    shown = [(*(float(cell) for cell in row[1:5]), row[5]) for row in rows if len(row) == 6 and row[1][:1].isdigit()]
    assert shown == [(p.sft_lr, p.reward_lr, p.ppo_lr, p.kl_coef, p.source) for p in PRESETS]
