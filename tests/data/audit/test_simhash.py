"""Sketches held to sets of words, and near-duplicates to all pairs."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from keel.data.audit import simhash
from keel.data.audit.simhash import SKETCH, jaccard, near_duplicates, sketches

WORDS = [f"w{number}" for number in range(300)]


def pairs_of_words(text: str) -> set[tuple[str, str]]:
    words = ["", *re.findall(r"[a-z0-9]+", text.casefold()), ""]
    return set(pairwise(words)) if len(words) > 2 else set()


def exact(one: str, other: str) -> float:
    a, b = pairs_of_words(one), pairs_of_words(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def texts(seed: int, count: int, least: int, most: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(least, most))) for _ in range(count)]


def changed(text: str, seed: int, words: int = 1) -> str:
    """The text with some of its words replaced."""
    draw = np.random.default_rng(seed)
    found = text.split()
    for at in draw.choice(len(found), words, replace=False):
        found[at] = f"other{seed}"
    return " ".join(found)


def test_the_jaccard_of_short_texts_is_exact() -> None:
    ones = [*texts(0, 30, 1, 30), "a b c", "a b c", "Name a fruit!", "", "?!", "über ALLES"]
    others = [
        *(changed(text, at) for at, text in enumerate(ones[:30])),
        "c b a",
        "a b c d",
        "name a  FRUIT",
        "",
        "...",
        "x",
    ]
    found = jaccard(sketches(ones), sketches(others))
    assert found.tolist() == [exact(one, other) for one, other in zip(ones, others, strict=True)]


def test_the_jaccard_of_long_texts_is_near() -> None:
    ones = texts(1, 200, 150, 400)
    others = [changed(text, at, words=1 + at % 20) for at, text in enumerate(ones)]
    truth = np.array([exact(one, other) for one, other in zip(ones, others, strict=True)])
    gap = jaccard(sketches(ones), sketches(others)) - truth
    assert np.abs(gap).max() < 4 * 0.5 / np.sqrt(SKETCH)
    assert abs(gap.mean()) < 0.01


def test_a_text_has_one_sketch_wherever_it_stands() -> None:
    several = sketches(["first one", "name a fruit", ""])
    alone = sketches(["name a fruit"])
    for field in ("hashes", "features", "counts"):
        together: NDArray[np.uint64] = getattr(several, field)
        assert (together[1] == getattr(alone, field)[0]).all()
    assert several.counts.tolist() == [3, 4, 0]


def test_each_ideograph_is_a_word() -> None:
    assert sketches(["你好吗", "tea 茶"]).counts.tolist() == [4, 3]


def test_near_duplicates_are_those_of_all_pairs() -> None:
    train = texts(2, 400, 20, 60)
    held_out = [changed(text, at) for at, text in enumerate(train[:40])] + texts(3, 60, 20, 60)
    found = near_duplicates(sketches(held_out), sketches(train))
    true = {(i, j) for i, one in enumerate(held_out) for j, other in enumerate(train) if exact(one, other) >= 0.8}
    assert len(true) == 40
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert pairs <= true
    assert len(pairs) >= 38  # one that differs in many bits may be missed
    assert found.unsure == 0


def test_short_questions_that_differ_are_no_near_duplicates() -> None:
    one, other = ["What is the capital of France?"], ["What is the capital of Spain?"]
    assert len(near_duplicates(sketches(one), sketches(other)).left) == 0
    assert len(near_duplicates(sketches(one), sketches(["what is the capital of france"])).left) == 1


def test_every_text_of_a_crowd_is_found_from_either_side() -> None:
    same = sketches(["the same words in all of these texts"] * (simhash._MOST_A_BUCKET + 5))
    one = sketches(["the same words in all of these texts"])
    for found in (near_duplicates(one, same), near_duplicates(same, one), near_duplicates(same, same)):
        assert found.unsure == 0
        assert len(found.left) >= len(same.counts)
    assert set(near_duplicates(same, same).right.tolist()) == set(range(len(same.counts)))


@pytest.mark.parametrize(("most", "right", "unsure"), [(1, [], 2), (2, [1], 0)])
def test_crowds_on_both_sides_are_unsure(
    monkeypatch: pytest.MonkeyPatch, most: int, right: list[int], unsure: int
) -> None:
    """All four have one SimHash, and the second of each side are the same text: the first alone would miss it."""
    monkeypatch.setattr(simhash, "_MOST_A_BUCKET", most)
    sides = [
        simhash.Sketches(
            np.zeros((2, 16), np.uint8), np.array([[one] + [simhash._PAD] * 63, [9] + [simhash._PAD] * 63], np.uint32),
            np.ones(2, np.int64),
        )
        for one in (1, 2)
    ]  # fmt: skip
    found = near_duplicates(sides[0], sides[1])
    assert (found.right.tolist(), found.unsure) == (right, unsure)


def test_nothing_on_a_side() -> None:
    assert len(near_duplicates(sketches([]), sketches(["a"])).left) == 0
    assert len(near_duplicates(sketches(["a"]), sketches([])).left) == 0
