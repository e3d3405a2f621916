"""Comparisons and replies to figures, and figures to alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from keel.assessment.findings import OTHER_PROMPTS, Compared, Replies, alarms, comparisons, replies

UNKNOWN = np.full(4, np.nan)


def compared(**other: Any) -> Compared:
    """Two prompts with two replies each: the longer one always scores higher. Three votes on the first, one beside."""
    fields: dict[str, Any] = {
        "scores": np.array([0.0, 2.0, 1.0, 4.0]),
        "lengths": np.array([10.0, 20.0, 10.0, 30.0]),
        "prompts": np.array([0, 0, 1, 1]),
        "chosen": np.array([1, 1, 0, 2]),
        "rejected": np.array([0, 0, 1, 3]),
        "sources": ("a", "a", "b", "b"),
        "annotators": np.arange(4),
        "margins": UNKNOWN,
        "probabilities": UNKNOWN,
    }
    return Compared(**fields | other)


def group(name: str, kind: str, scores: Sequence[float], apart: Sequence[float] | None = None) -> Replies:
    return Replies(name, kind, np.array(scores), None if apart is None else np.array(apart))


def test_comparisons_by_hand() -> None:
    found = comparisons(compared(), scale=2.0)
    assert found["accuracy"]["accuracy"] == 0.5
    assert found["prompts"] == 2
    assert [(one["name"], one["accuracy"]) for one in found["by_source"]] == [("a", 1.0), ("b", 0.0)]
    assert found["length"]["shorter_preferred"]["accuracy"] == 0.0
    assert found["length"]["longer_preferred"]["accuracy"] == 1.0
    assert found["length"]["longer_wins"] == 0.5
    assert found["length"]["pearson_within"] == pytest.approx(40 / math.sqrt(250 * 6.5))
    assert found["ceiling"]["items"] == 1
    assert found["ceiling"]["agreement"] == pytest.approx(1 / 3)  # of three votes 2:1, one two of three agrees
    assert found["by_stated_margin"] == []
    assert found["stated_ceiling"] is None
    assert len(found["length"]["points"]) == 4


def test_log_odds_are_scores_times_the_scale() -> None:
    """Gaps 2, 2, −2, −3 as log-odds 4, 4, −4, −6."""
    found = comparisons(compared(), scale=2.0)["calibration"]
    expected = sum(math.log(1 + math.exp(-gap)) for gap in (4, 4, -4, -6)) / 4
    assert found["nll"] == pytest.approx(expected)
    assert found["scale"] == 2.0


def test_known_chances_state_the_ceiling() -> None:
    found = comparisons(compared(probabilities=np.array([0.9, 0.9, 0.1, 0.7]), margins=np.arange(4.0)), 1.0)
    assert found["stated_ceiling"] == pytest.approx(0.85)
    assert [one["pairs"] for one in found["by_stated_margin"]] == [1, 1, 1, 1]


def test_replies_beside_the_real_ones_by_hand() -> None:
    """Probe 1 against real 0 and 2: above one of two, and above its own prompt's once."""
    real, probe = replies([group("real", "real", [0.0, 2.0], [0.1, 0.3]), group("p", "probe", [1.0, 1.0], [0.2, 0.4])])
    assert real["percentile"] == real["beats"] == 0.5
    assert (probe["percentile"], probe["beats"]) == (0.5, 0.5)
    assert probe["quartiles"] == [1.0, 1.0, 1.0]
    assert probe["disagreement"] == pytest.approx(0.3)
    assert probe["disagreement_above"] == pytest.approx(0.75)  # 0.2 passes 0.1; 0.4 passes both
    assert "disagreement" not in replies([group("real", "real", [0.0, 1.0])])[0]


REAL = group("real", "real", [0.0, 1.0, 2.0], [0.1, 0.2, 0.3])
SOUND = {"holds": True, "batch": 0.0, "padding": 0.0, "order": 0.0, "tolerance": 1e-3}


def judged(*groups: Replies, invariance: dict[str, Any] | None = None, **of_comparisons: Any) -> list[str]:
    right = {"accuracy": 0.8, "interval": [0.7, 0.9], "pairs": 100}
    halves = {"shorter_preferred": right, "longer_preferred": right}
    found = {"accuracy": right, "length": halves | of_comparisons.pop("length", {}), "ceiling": None} | of_comparisons
    return alarms(found | {"replies": replies([REAL, *groups]), "invariance": invariance or SOUND})


def test_a_sound_model_raises_no_alarm() -> None:
    apart = group(OTHER_PROMPTS, "off", [-1.0, -1.0, 0.0], [1.0, 1.0, 1.0])
    assert judged(group("empty", "probe", [-3.0, -3.0, 0.9]), apart) == []


def test_a_model_that_may_be_chance_may_go_by_length_too() -> None:
    """−length: right wherever the shorter reply was preferred, never where the longer one was; 46 % in all."""
    total = {"accuracy": 0.46, "interval": [0.36, 0.56], "pairs": 100}
    chance, length = judged(
        accuracy=total, length={"longer_preferred": {"accuracy": 0.0, "interval": [0.0, 0.11], "pairs": 54}}
    )
    assert "which may be chance" in chance
    assert "it goes by length" in length


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (judged(group("empty", "probe", [1.1, 1.1, -5.0])), "“empty” scores above the median real reply (1.10 against"),
        (judged(group(OTHER_PROMPTS, "off", [2.0, 0.0, 2.0])), "beat the prompt’s own in 50%"),
        (judged(group("hot", "off", [-1.0, -1.0, -1.0], [0.1, 0.1, 0.1])), "disagree no more"),
        (judged(invariance=SOUND | {"holds": False, "padding": 0.5}), "up to 0.5 with its padding"),
        (judged(accuracy={"accuracy": 0.55, "interval": [0.45, 0.65], "pairs": 9}), "right in 55% of the pairs"),
        (
            judged(length={"shorter_preferred": {"accuracy": 0.2, "interval": [0.1, 0.3], "pairs": 9}}),
            "Where the shorter reply was preferred it is right in 20%: it goes by length",
        ),
        (
            judged(length={"longer_preferred": {"accuracy": 0.0, "interval": [0.0, 0.11], "pairs": 30}}),
            "Where the longer reply was preferred it is right in 0%: it goes by length",
        ),
        (judged(accuracy={"accuracy": 0.32, "interval": [0.21, 0.46], "pairs": 50}), "it prefers the worse"),
        (
            judged(ceiling={"highest": 0.8, "model": {"accuracy": 0.95, "interval": [0.9, 1.0], "pairs": 50}}),
            "what it was trained on",
        ),
    ],
)
def test_each_alarm_fires(found: list[str], words: str) -> None:
    (sentence,) = found
    assert words in sentence
