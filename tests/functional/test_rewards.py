from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from keel.functional.rewards import shape_rewards, transform_scores

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
