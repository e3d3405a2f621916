"""How often the rows of several sources are met, counted one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.mix import Mixture, by_kind
from keel.seeds import Draws

DRAWS = Draws(0, "sft")
SOURCES = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([0.2, 0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=3
)


def test_an_epoch_by_hand() -> None:
    mixture = Mixture((4, 6), (2.0, 0.5))
    assert (mixture.counts, mixture.epoch_size) == ((8, 3), 11)
    first, second = (Counter(mixture.epoch(DRAWS, "order", number)) for number in (0, 1))
    for epoch in (first, second):
        assert {row: epoch[row] for row in range(4)} == dict.fromkeys(range(4), 2)
        assert sum(epoch[row] for row in range(4, 10)) == 3
    assert {row: (first + second)[row] for row in range(4, 10)} == dict.fromkeys(range(4, 10), 1)


def test_a_small_weight_gives_one_row_at_least() -> None:
    assert Mixture((3, 10), (0.01, 1.0)).counts == (1, 10)


@given(SOURCES, st.integers(1, 5))
def test_rows_of_a_source_are_met_equally_often(sources: list[tuple[int, float]], epochs: int) -> None:
    mixture = Mixture(tuple(size for size, _ in sources), tuple(weight for _, weight in sources))
    met = Counter(mixture.batch(DRAWS, "order", batch=epochs * mixture.epoch_size, start=0))
    first = 0
    for size, weight in sources:
        times = [met[row] for row in range(first, first + size)]
        assert sum(times) == epochs * max(1, round(weight * size))
        assert max(times) - min(times) <= 1
        first += size
    assert sum(met.values()) == epochs * mixture.epoch_size


@given(SOURCES, st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
def test_the_sequence_may_be_cut_anywhere(sources: list[tuple[int, float]], start: int, one: int, other: int) -> None:
    mixture = Mixture(tuple(size for size, _ in sources), tuple(weight for _, weight in sources))
    whole = mixture.batch(DRAWS, "order", batch=one + other, start=start)
    parts = [
        mixture.batch(DRAWS, "order", batch=one, start=start),
        mixture.batch(DRAWS, "order", batch=other, start=start + one),
    ]
    assert whole == parts[0] + parts[1]


@pytest.mark.parametrize("sizes", [(7,), (3, 4)])
def test_weights_of_one_are_the_plain_order(sizes: tuple[int, ...]) -> None:
    mixture = Mixture(sizes, (1.0,) * len(sizes))
    assert mixture.epoch(DRAWS, "order", 3) == list(range(7))
    plain = DRAWS.batch_indices("order", 7, batch=10, start=5)
    assert mixture.batch(DRAWS, "order", batch=10, start=5) == plain
    assert Mixture.whole(7).batch(DRAWS, "order", batch=10, start=5) == plain


@dataclass(frozen=True)
class Thing:
    number: int
    kind: str | None


def test_by_kind_keeps_the_order() -> None:
    things = [Thing(0, "b"), Thing(1, None), Thing(2, "a"), Thing(3, "b")]
    assert by_kind(things) == {"b": [things[0], things[3]], None: [things[1]], "a": [things[2]]}
