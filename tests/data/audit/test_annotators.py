"""Agreement held to published and hand-made tables, its intervals and bounds to simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from keel.assessment.statistics import wilson_interval
from keel.data.audit.annotators import Annotators, Votes, annotators_of, votes_of

_UNKNOWN = np.int8(-1)


def krippendorff_alpha(counts: NDArray[np.int64]) -> float:
    """α = 1 − D_o/D_e for values without an order; `counts` [u, v]: how often unit u was given value v.

    D_o = Σ_u (m_u² − Σ_v n_uv²)/(m_u − 1) / n, D_e = (n² − Σ_v n_v²)/(n(n − 1)) over units of m_u ≥ 2 values, n in all.
    """
    counts = counts[counts.sum(axis=1) >= 2]
    of_unit = counts.sum(axis=1)
    n = int(of_unit.sum())
    observed = float(((of_unit**2 - (counts**2).sum(axis=1)) / (of_unit - 1)).sum()) / n
    return 1 - observed * n * (n - 1) / float(n**2 - (counts.sum(axis=0) ** 2).sum())


def test_alpha_of_krippendorffs_own_examples() -> None:
    """Krippendorff (2011), "Computing Krippendorff's alpha-reliability": B, two observers and binary data, 0.095; C,
    four observers, five values and gaps, 0.743."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(table([meg, owen], 2)) == pytest.approx(0.095, abs=5e-4)
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    assert krippendorff_alpha(table(observers, 6)) == pytest.approx(0.743, abs=5e-4)


def table(observers: list[list[int]] | list[list[int | None]], values: int) -> NDArray[np.int64]:
    """How often each unit was given each value."""
    found = np.zeros((len(observers[0]), values), np.int64)
    for observer in observers:
        for unit, value in enumerate(observer):
            if value is not None:
                found[unit, value] += 1
    return found


def ballots(*given: tuple[int, int, bool]) -> Votes:
    """(pair, annotator, side) as votes, each pair of a prompt of its own."""
    pair, annotator, side = (np.array(column) for column in zip(*given, strict=True))
    return Votes(pair.astype(np.int64), side, annotator.astype(np.int64), pair.astype(np.uint64), np.arange(len(pair)))


def of(votes: Votes, first: NDArray[np.int8] | None = None, longer: NDArray[np.int8] | None = None) -> Annotators:
    unknown = np.full(len(votes.pair), _UNKNOWN)
    names = [f"a{number}" for number in range(int(votes.annotator.max()) + 1)]
    return annotators_of(votes, names, unknown if first is None else first, unknown if longer is None else longer)


def naive(votes: Votes) -> tuple[float, float]:
    """α with every pair entered both ways round, and with what share of the others a vote agrees, vote by vote."""
    by_pair: dict[int, list[bool]] = {}
    for pair, side in zip(votes.pair.tolist(), votes.side.tolist(), strict=True):
        by_pair.setdefault(pair, []).append(side)
    both = [[side.count(True), side.count(False)] for side in by_pair.values()]
    several = [sides for sides in by_pair.values() if len(sides) > 1]
    same = [(sides.count(side) - 1) / (len(sides) - 1) for sides in several for side in sides]
    return krippendorff_alpha(np.array([*both, *(row[::-1] for row in both)])), sum(same) / len(same)


def test_agreement_by_hand_and_by_a_naive_loop() -> None:
    """Pairs 0: three agree; 1: two of three; 2: one vote. Votes agree with 2, 2, 2 and ½, ½, 0 of the others."""
    votes = ballots((0, 0, True), (0, 1, True), (0, 2, True), (1, 0, True), (1, 1, False), (1, 2, True), (2, 0, False))
    found = of(votes)
    assert (found.votes, found.pairs, found.votes_per_pair) == (7, 3, {1: 1, 3: 2})
    assert found.agreement is not None
    assert found.alpha is not None
    assert found.agreement.value == pytest.approx((3 * 1 + 2 * 1 / 2) / 6)
    assert (found.alpha.value, found.agreement.value) == pytest.approx(naive(votes))
    assert [(p.name, p.votes, p.agreement.hits, p.agreement.total) for p in found.people] == [
        ("a0", 3, 3, 4), ("a1", 2, 2, 4), ("a2", 2, 3, 4),
    ]  # fmt: skip
    # Hers agree with 2 of 2 and 1 of 2: a variance of 2·(½² + ½²)/4² = 1/16, that of 3 independent ones at ¾.
    assert found.people[0].agreement.interval == pytest.approx(wilson_interval(0.75, 3))


def test_a_pair_weighs_by_its_votes() -> None:
    """Four votes agree, two do not: 4 of 6 votes agree with another one; of the 6 + 1 twos of votes 6 would."""
    found = of(ballots(*[(0, who, True) for who in range(4)], (1, 0, True), (1, 1, False)))
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(4 / 6)
    assert found.ceiling == pytest.approx((4 / 6, 0.5 + 0.5 * math.sqrt(1 / 3)))


def crowd(seed: int, pairs: int, people: int, sure: float) -> Votes:
    """Each of some annotators votes with a pair's truth with probability `sure`."""
    draw = np.random.default_rng(seed)
    truth = draw.random(pairs) < 0.5
    given = []
    for pair in range(pairs):
        for person in draw.choice(people, 3, replace=False).tolist():
            given.append((pair, person, bool(truth[pair]) == (draw.random() < sure)))
    return ballots(*given)


def test_alpha_does_not_know_which_reply_is_called_the_first() -> None:
    votes = crowd(0, 60, 10, 0.8)
    turned = Votes(
        votes.pair, np.where(votes.pair % 3 == 0, ~votes.side, votes.side), votes.annotator, votes.prompt, votes.label
    )
    one, other = of(votes).alpha, of(turned).alpha
    assert one is not None
    assert other is not None
    assert one.value == pytest.approx(naive(votes)[0])
    assert other.value == pytest.approx(one.value, abs=1e-12)


def test_the_intervals_cover_what_the_votes_were_drawn_with() -> None:
    """Two votes, each right with 0.85, agree with 0.85² + 0.15² = 0.745, and α is near 2·0.745 − 1 = 0.49."""
    covered = np.zeros(2)
    for seed in range(60):
        found = of(crowd(seed, 120, 12, 0.85))
        assert found.agreement is not None
        assert found.alpha is not None
        covered[0] += found.agreement.interval[0] <= 0.745 <= found.agreement.interval[1]
        covered[1] += found.alpha.interval[0] <= 0.49 <= found.alpha.interval[1]
    assert ((covered / 60 >= 0.87) & (covered / 60 <= 1.0)).all()


def test_who_stands_out() -> None:
    """Of 20 careful annotators none; the one who tosses coins, who takes the first, who takes the longer are found."""
    draw = np.random.default_rng(4)
    given: list[tuple[int, int, bool]] = []
    first, longer = [], []
    for pair in range(300):
        truth, shown_first, is_longer = (bool(value) for value in draw.random(3) < 0.5)
        for person in [*draw.choice(20, 3, replace=False).tolist(), 20, 21, 22]:
            side = truth == (draw.random() < 0.9)
            if person == 20:
                side = bool(draw.random() < 0.5)
            if person == 21:
                side = shown_first
            if person == 22:
                side = is_longer
            given.append((pair, person, side))
            first.append(side == shown_first)
            longer.append(side == is_longer)
    found = of(ballots(*given), np.array(first, np.int8), np.array(longer, np.int8))
    remarks = {person.name: person.remarks for person in found.outlying}
    assert set(remarks) == {"a20", "a21", "a22"}
    assert remarks["a20"] == ["low agreement"]
    assert remarks["a21"] == ["low agreement", "always the first"]
    assert remarks["a22"][-1] == "always the longer"


def test_a_leaning_to_the_first_is_position_bias() -> None:
    votes = ballots(*[(pair, 0, True) for pair in range(100)])
    lean = np.array([1] * 80 + [0] * 20, np.int8)
    assert of(votes, lean).people[0].remarks == ["position bias: the first"]
    assert of(votes, 1 - lean).people[0].remarks == ["position bias: the second"]
    assert of(votes, np.array([1] * 55 + [0] * 45, np.int8)).people[0].remarks == []


def test_votes_are_one_a_person_and_pair() -> None:
    """Rows: x over y by ann twice; y over x by bob; by cat both ways; by dan x over z; nobody named."""
    x, y, z = 5, 9, 7
    chosen, rejected = np.array([x, x, y, x, y, x, x], np.uint64), np.array([y, y, x, y, x, z, y], np.uint64)
    annotator = np.array([0, 0, 1, 2, 2, 3, -1])
    votes = votes_of(np.ones(7, np.uint64), chosen, rejected, annotator, np.arange(7))
    assert sorted(zip(votes.annotator.tolist(), votes.side.tolist(), votes.label.tolist(), strict=True)) == [
        (0, True, 0), (1, False, 2), (3, True, 5),
    ]  # fmt: skip
    assert len(set(votes.pair.tolist())) == 2


def test_nobody_named() -> None:
    none = np.empty(0, np.int64)
    votes = votes_of(np.ones(1, np.uint64), np.ones(1, np.uint64), np.zeros(1, np.uint64), np.array([-1]), np.arange(1))
    found = annotators_of(votes, [], none.astype(np.int8), none.astype(np.int8))
    assert (found.votes, found.alpha, found.ceiling, found.people) == (0, None, None, [])
