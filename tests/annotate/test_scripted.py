from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from keel.annotate.base import Annotator, Pair, noise_ceiling
from keel.annotate.scripted import ScriptedAnnotator, preference_probability
from keel.errors import UserError


def length(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
    return [float(len(response)) for response in responses]


def pair(first: str, second: str, prompt: str = "p") -> Pair:
    return Pair(prompt, first, second, {})


def annotator(utility: Any = length, temperature: float = 1.0) -> ScriptedAnnotator:
    return ScriptedAnnotator(utility, temperature=temperature, name="rules:length")


def test_probability_and_margin_by_hand() -> None:
    judge: Annotator = annotator(temperature=2.0)
    # sigma(3 / 2) = 0.817574..., sigma(-1 / 2) = 0.377541...
    first, second = judge.compare([pair("aaaa", "a"), pair("a", "aa")], [0.8175, 0.3776])
    assert (first.margin, second.margin) == (3.0, -1.0)
    assert first.probability == pytest.approx(0.8175744761936437)
    assert second.probability == pytest.approx(0.3775406687981454)
    assert (first.first_wins, second.first_wins) == (True, False)


@pytest.mark.parametrize("first", ["a", "aa", "aaaa"])
def test_labels_follow_the_probability(first: str) -> None:
    num_pairs = 20_000
    uniforms = np.random.default_rng(0).random(num_pairs).tolist()
    judgements = annotator(temperature=1.5).compare([pair(first, "aa")] * num_pairs, uniforms)
    exact = 1 / (1 + math.exp(-(len(first) - 2) / 1.5))
    wins = sum(judgement.first_wins for judgement in judgements)
    assert abs(wins - num_pairs * exact) < 4 * math.sqrt(num_pairs * exact * (1 - exact))


def test_without_noise_the_better_one_wins_and_the_uniform_decides_equals() -> None:
    pairs = [pair("aa", "a"), pair("a", "aa"), pair("a", "b"), pair("a", "b")]
    judgements = annotator(temperature=0.0).compare(pairs, [0.999999, 0.0, 0.49, 0.5])
    assert [judgement.first_wins for judgement in judgements] == [True, False, True, False]
    assert [judgement.probability for judgement in judgements] == [1.0, 0.0, 0.5, 0.5]


def test_huge_gaps_do_not_overflow() -> None:
    assert preference_probability(1e300, 1e-3) == 1.0
    assert preference_probability(-1e300, 1e-3) == 0.0


def test_the_utility_sees_prompts_and_rows() -> None:
    def lookup(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
        return [float(f"{p}{r}{row['x']}") for p, r, row in zip(prompts, responses, rows, strict=True)]

    pairs = [Pair("1", "2", "3", {"x": 4}), Pair("5", "7", "6", {"x": 8})]
    judgements = annotator(lookup).compare(pairs, [0.5, 0.5])
    assert [judgement.margin for judgement in judgements] == [124.0 - 134.0, 578.0 - 568.0]


@pytest.mark.parametrize("bad", [math.nan, None])
def test_the_utility_is_held_to_its_contract_and_must_have_an_opinion(bad: Any) -> None:
    def faulty(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[Any]:
        return [bad if "!" in response else 0.0 for response in responses]

    pairs = [pair("a", "b"), pair("a", "b!", "second"), pair("a!", "b", "third")]
    sentence = r"the function rules:length returned (nan|None) \(row 3, prompt 'second', response 'b!'\)"
    with pytest.raises(UserError, match=sentence):
        annotator(faulty).compare(pairs, [0.5] * 3)


def test_no_pairs_no_judgements() -> None:
    assert annotator().compare([], []) == []


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="1 pairs, but 2 uniforms"):
        annotator().compare([pair("a", "b")], [0.5, 0.5])
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=str(temperature)):
            annotator(temperature=temperature)


def test_noise_ceiling_by_hand() -> None:
    assert noise_ceiling([0.9, 0.2, 0.5, 1.0]) == pytest.approx((0.9 + 0.8 + 0.5 + 1.0) / 4)
    with pytest.raises(ValueError, match="at least one probability"):
        noise_ceiling([])


def test_noise_ceiling_is_what_the_true_utility_attains() -> None:
    rng = np.random.default_rng(1)
    pairs = [pair("a" * int(i), "a" * int(j)) for i, j in rng.integers(1, 8, size=(20_000, 2))]
    judgements = annotator(temperature=2.0).compare(pairs, rng.random(len(pairs)).tolist())
    decided = [(j.first_wins, j.margin, j.probability) for j in judgements if j.margin and j.probability is not None]
    accuracy = sum(first_wins == (margin > 0) for first_wins, margin, _ in decided) / len(decided)
    assert abs(accuracy - noise_ceiling([probability for *_, probability in decided])) < 4 * math.sqrt(
        0.25 / len(decided)
    )
