from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from keel.functional.rewards import length_penalty, shape_rewards, transform_scores

MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])
GAPS = torch.tensor([[0.1, -0.2, 0.3, 9.0], [0.5, 9.0, 9.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
SCORES = torch.tensor([2.0, -1.0, 4.0])
ENDED = torch.tensor([True, True, False])


def test_shaped_rewards_by_hand() -> None:
    rewards = shape_rewards(SCORES, GAPS, MASK, ENDED, kl_coef=0.5, eos_penalty=3.0)
    expected = [[-0.05, 0.1, 2.0 - 0.15, 0.0], [-1.25, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.0 - 3.0 - 0.5]]
    assert_close(rewards, torch.tensor(expected))


def test_mistake_7_the_score_lands_on_the_last_real_token_not_on_the_first_pad() -> None:
    rewards = shape_rewards(SCORES, torch.zeros_like(GAPS), MASK, ENDED, kl_coef=0.1)
    assert rewards.nonzero().tolist() == [[0, 2], [1, 0], [2, 3]]
    assert rewards.sum(1).tolist() == SCORES.tolist()


def test_the_return_is_the_score_less_the_priced_sequence_kl() -> None:
    rewards = shape_rewards(SCORES, GAPS, MASK, ENDED, kl_coef=0.25)
    expected = [2.0 - 0.25 * 0.2, -1.0 - 0.25 * 0.5, 4.0 - 0.25 * 1.0]
    assert rewards.sum(1).tolist() == pytest.approx(expected)


def test_erratum_10_rewards_carry_no_gradient() -> None:
    gaps = GAPS.clone().requires_grad_()
    assert not shape_rewards(SCORES.clone().requires_grad_(), gaps, MASK, ENDED, kl_coef=0.5).requires_grad


def test_rows_without_a_token_or_with_a_hole_are_refused() -> None:
    empty = MASK.clone()
    empty[1] = False
    with pytest.raises(ValueError, match=r"row 1 .* is empty"):
        shape_rewards(SCORES, GAPS, empty, ENDED, kl_coef=0.1)
    hole = MASK.clone()
    hole[2, 1] = False
    with pytest.raises(ValueError, match="row 2 "):
        shape_rewards(SCORES, GAPS, hole, ENDED, kl_coef=0.1)


def test_scores_are_left_alone_by_default() -> None:
    assert torch.equal(transform_scores(SCORES), SCORES)


def test_scores_are_clipped_before_they_are_whitened() -> None:
    scores = torch.tensor([-10.0, 1.0, 3.0, 10.0], dtype=torch.float64)
    assert transform_scores(scores, clip=3.0).tolist() == [-3.0, 1.0, 3.0, 3.0]
    deviation = math.sqrt((16 + 0 + 4 + 4) / 4)  # of -3, 1, 3, 3 around their mean 1
    expected = [-4 / deviation, 0.0, 2 / deviation, 2 / deviation]
    assert transform_scores(scores, clip=3.0, whiten=True).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_clip_that_leaves_nothing_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip must be above 0"):
        transform_scores(SCORES, clip=clip)


def test_a_running_scale_divides_before_the_clip() -> None:
    assert transform_scores(torch.tensor([8.0, -1.0]), scale=2.0, clip=3.0).tolist() == [3.0, -0.5]
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        transform_scores(SCORES, scale=0.0)


def test_length_costs_evenly_and_at_the_limit_softly() -> None:
    lengths = torch.tensor([1, 6, 7, 8, 10, 12])
    assert length_penalty(lengths, per_token=0.5).tolist() == [0.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    assert length_penalty(lengths, buffer=4, max_length=10).tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    both = length_penalty(lengths, per_token=0.5, buffer=4, max_length=10)
    assert both.tolist() == [0.5, 3.0, 3.75, 4.5, 6.0, 7.0]


def test_the_cost_of_length_falls_on_the_last_token() -> None:
    rewards = shape_rewards(SCORES, GAPS, MASK, ENDED, kl_coef=0.0, length_cost=torch.tensor([0.5, 0.25, 1.0]))
    assert rewards.sum(dim=1).tolist() == [1.5, -1.25, 3.0]
    assert (rewards != 0).sum(dim=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"per_token": -0.1}, {"buffer": 11, "max_length": 10}, {"buffer": -1}])
def test_lengths_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        length_penalty(torch.tensor([3]), **wrong)
