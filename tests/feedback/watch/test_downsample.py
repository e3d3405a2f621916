from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.feedback.watch.downsample import thin

VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan))


def naive(y: list[float], most: int) -> set[int]:
    """Both ends, and of every bucket between them the first lowest, the first highest and the first NaN."""
    buckets = (most - 2) // 3
    kept = {0, len(y) - 1}
    edges = [int(1 + (len(y) - 2) * number / buckets) for number in range(buckets + 1)]
    for start, end in pairwise(edges):
        finite = [at for at in range(start, end) if not math.isnan(y[at])]
        gaps = [at for at in range(start, end) if math.isnan(y[at])]
        if finite:
            kept |= {min(finite, key=lambda at: y[at]), max(finite, key=lambda at: y[at])}
        kept |= set(gaps[:1])
    return kept


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=300), st.integers(5, 60))
def test_ends_extremes_and_gaps_are_kept(y: list[float], most: int) -> None:
    kept = thin(np.array(y), most).tolist()
    assert len(kept) <= most
    assert kept == sorted(set(kept))
    assert {kept[0], kept[-1]} == {0, len(y) - 1}
    if len(y) > most:
        assert set(kept) == naive(y, most)
    else:
        assert kept == list(range(len(y)))


def test_a_spike_and_a_gap_in_a_long_curve_are_seen() -> None:
    y = np.sin(np.arange(100_000) / 5000)
    y[54_321], y[77_777] = 40.0, np.nan
    kept = thin(y, 600)
    assert {54_321, 77_777} <= set(kept.tolist())
    assert 300 < len(kept) <= 600


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="4 points show no curve"):
        thin(np.zeros(10), 4)
