"""The lines that judges draw on the scale of the scores."""

from __future__ import annotations

import pytest
import torch

from keel.batching import pad_rows
from keel.models.reward import RewardModel
from keel.models.thresholds import JudgedModel, Thresholds
from tests.worlds import random_rows, tiny_classifier


def test_at_the_start_they_give_the_shares_of_the_data() -> None:
    """Of 10 ratings 3, 0 and 7, with half a one more for each level: 3.5, 0.5 and 7.5 of 11.5."""
    points = Thresholds([3, 0, 7], 0).points
    below = torch.sigmoid(points.cuts).tolist()
    assert below == pytest.approx([3.5 / 11.5, 4 / 11.5], abs=1e-6)
    assert points.offsets.tolist() == [0.0]


def test_offsets_are_those_of_the_mean_annotator_and_who_is_not_known_has_none() -> None:
    thresholds = Thresholds([1, 1], 3)
    assert thresholds.lenience is not None
    with torch.no_grad():
        thresholds.lenience.copy_(torch.tensor([1.0, 2.0, 6.0]))
    offsets = thresholds.points.offsets
    assert offsets.tolist() == [-2.0, -1.0, 3.0, 0.0]
    assert offsets[[-1, 0]].tolist() == [0.0, -2.0]


def test_one_annotator_is_the_mean() -> None:
    alone = Thresholds([1, 1], 1)
    assert alone.points.offsets.tolist() == [0.0]
    assert [name for name, _ in alone.named_parameters()] == ["free"]


def test_no_step_makes_them_cross() -> None:
    thresholds = Thresholds([5, 1, 1, 5], 0)
    optimiser = torch.optim.SGD(thresholds.parameters(), lr=5.0)
    for _ in range(20):
        optimiser.zero_grad()
        cuts = thresholds.points.cuts
        torch.autograd.backward((cuts[2] - cuts[0]) ** 2 + cuts[1])  # wants them together, and the middle one low
        optimiser.step()
        assert (thresholds.points.cuts.detach().diff() > 0).all()


def test_a_judged_model_scores_as_its_reward_model() -> None:
    model = RewardModel(tiny_classifier().eval())
    judged = JudgedModel(model, Thresholds([2, 3], 2))
    batch = pad_rows(random_rows([(3, 2), (1, 4)]))
    assert torch.equal(judged(batch), model(batch))
    own = {name for name, _ in judged.named_parameters() if not name.startswith("reward.")}
    assert own == {"thresholds.free", "thresholds.lenience"}
