from __future__ import annotations

import math

import pytest
import torch

from keel.functional.ensembles import combine_scores, disagreement, doubt

MEMBERS = torch.tensor([[1.0, 2.0, 6.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)


def test_combinations_by_hand() -> None:
    """1, 2, 6: mean 3, deviations -2, -1, 3, so variance 14/3 (a sample's would be 7)."""
    assert combine_scores(MEMBERS, "mean").tolist() == [3.0, -1.0]
    assert combine_scores(MEMBERS, "min").tolist() == [1.0, -1.0]
    assert combine_scores(MEMBERS, "uncertainty", coef=0.3).tolist() == pytest.approx([3 - 0.3 * 14 / 3, -1.0])
    assert disagreement(MEMBERS).tolist() == pytest.approx([(14 / 3) ** 0.5, 0.0])


def test_one_member_is_its_score() -> None:
    scores = torch.randn(5, generator=torch.Generator().manual_seed(0))
    for how in ("mean", "min", "uncertainty"):
        assert torch.equal(combine_scores(scores[:, None], how, coef=2.0), scores)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="'median'"):
        combine_scores(MEMBERS, "median")


def test_doubt_by_hand() -> None:
    """Two members at odds of 3 : 1 and 1 : 3 are an even chance together; two at 3 : 1 contradict nobody."""
    three = math.log(3.0)
    toss = math.log(2)
    of_one = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    several = torch.tensor([[three, -three], [three, three], [0.0, 0.0], [50.0, -50.0]], dtype=torch.float64)
    assert doubt(several).tolist() == pytest.approx([toss - of_one, 0.0, 0.0, toss])
    single = torch.tensor([[three], [-three], [0.0], [800.0]], dtype=torch.float64)
    assert doubt(single).tolist() == pytest.approx([of_one, of_one, toss, 0.0])
