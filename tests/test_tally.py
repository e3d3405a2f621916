"""Metrics do not depend on how the work was cut."""

from __future__ import annotations

import math

import pytest

from keel.tally import Tally


def test_means_are_sums_over_weights() -> None:
    tally = Tally()
    tally.add("loss", 6.0, 3)
    tally.add("loss", 2.0, 1)
    tally.add("episodes", 5)
    tally.extreme("ratio_max", 1.5)
    tally.extreme("ratio_max", 1.25)
    tally.extreme("below_zero", -3)
    assert tally.means() == {"loss": 2.0, "episodes": 5.0, "ratio_max": 1.5, "below_zero": -3.0}


def test_merging_is_adding_it_all_to_one() -> None:
    one, other = Tally(), Tally()
    one.add("loss", 6.0, 3)
    one.extreme("ratio_max", 1.0)
    other.add("loss", 2.0, 1)
    other.add("kl", 0.5, 2)
    other.extreme("ratio_max", 4.0)
    other.extreme("norm", 2.0)
    one.merge(other)
    assert one.means() == {"loss": 2.0, "kl": 0.25, "ratio_max": 4.0, "norm": 2.0}
    assert other.means() == {"loss": 2.0, "kl": 0.25, "ratio_max": 4.0, "norm": 2.0}


def test_nothing_counted_is_not_a_number_and_not_zero() -> None:
    tally = Tally()
    tally.add("win_rate", 0.0, 0.0)
    assert math.isnan(tally.means()["win_rate"])


def test_a_nan_extreme_stays_whatever_the_order() -> None:
    for values in ([1.0, math.nan, 2.0], [math.nan, 2.0], [1.0, math.nan]):
        tally = Tally()
        for value in values:
            tally.extreme("norm", value)
        assert math.isnan(tally.means()["norm"])


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="metric loss has weight"):
        Tally().add("loss", 1.0, weight)


def test_one_name_for_two_kinds_is_refused() -> None:
    tally = Tally()
    tally.add("loss", 1.0)
    tally.extreme("loss", 1.0)
    with pytest.raises(ValueError, match="metric loss is both a mean and an extreme"):
        tally.means()
