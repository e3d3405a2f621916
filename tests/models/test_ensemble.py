from __future__ import annotations

from typing import Any

import pytest
import torch

from keel.batching import pad_rows
from keel.models.ensemble import RewardEnsemble
from keel.models.reward import RewardModel
from tests.worlds import random_rows, tiny_classifier

ROWS = random_rows([(1, 5), (6, 9), (3, 1), (12, 0), (2, 12)])


def heads() -> RewardEnsemble:
    part = RewardModel(tiny_classifier())
    part.reset_head(1, 2, 3)
    return RewardEnsemble([part])


def models() -> RewardEnsemble:
    parts = [RewardModel(tiny_classifier(seed=seed)) for seed in range(3)]
    for seed, part in enumerate(parts):
        part.reset_head(seed)
    return RewardEnsemble(parts)


def test_several_heads_are_one_head_each() -> None:
    """A column is the score of a model with that head alone, and a label names it."""
    several = heads()
    with torch.no_grad():
        columns = several(pad_rows(ROWS)).T
        for seed, column in zip((1, 2, 3), columns, strict=True):
            alone = RewardModel(tiny_classifier())
            alone.reset_head(seed)
            torch.testing.assert_close(column, alone(pad_rows(ROWS)), rtol=0, atol=1e-6)
    config: Any = several.parts[0].classifier.config
    assert config.id2label == {0: "member_0", 1: "member_1", 2: "member_2"}
    assert config.num_labels == 3


@pytest.mark.parametrize("made", [heads, models])
def test_each_member_is_centred_and_one_factor_scales_all(made: Any) -> None:
    ensemble = made()
    with torch.no_grad():
        raw = ensemble(pad_rows(ROWS))
        ensemble.normalise([5.0, 6.0, 7.0], 0.5)  # twice, for a shift to be there already
        ensemble.normalise((ensemble(pad_rows(ROWS)).mean(dim=0)).tolist(), 0.25)
        scores = ensemble(pad_rows(ROWS))
    torch.testing.assert_close(scores, (raw - raw.mean(dim=0)) / 0.125, atol=1e-4, rtol=1e-4)
