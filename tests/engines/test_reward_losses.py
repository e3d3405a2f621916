"""The reward model's losses on rankings, ratings and labels, each against a loop with floats alone."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from keel.batching import pad_rows
from keel.engines.reward_losses import label_loss, ranking_loss, rating_loss
from keel.models.thresholds import JudgedModel, Thresholds
from keel.pipeline.judgements import (
    EncodedRanking,
    EncodedRating,
    by_prompt,
    microbatches,
    rankings_batch,
    ratings_batch,
)
from keel.records import EncodedRow, Rankings, Ratings
from tests.engines.helpers import tiny_reward_model

DENOMINATOR = 2.5


def row(*response: int, prompt: tuple[int, ...] = (11, 12)) -> EncodedRow:
    return EncodedRow((*prompt, *response), len(prompt))


ROWS = [row(20), row(30, 31, 32), row(40, 41), row(50, prompt=(13,)), row(60, 61, prompt=(13,))]
MODEL = tiny_reward_model()
with torch.no_grad():
    MODEL.head.get_parameter("weight").mul_(3)  # so that scores differ enough to matter
    SCORES = {one: float(MODEL(pad_rows([one]))) for one in ROWS}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair_metrics(pairs: list[tuple[EncodedRow, EncodedRow]]) -> dict[str, float]:
    gaps = [SCORES[better] - SCORES[worse] for better, worse in pairs]
    return {"reward/accuracy": sum(gap > 0 for gap in gaps) / len(gaps), "reward/margin": sum(gaps) / len(gaps)}


def test_rankings_are_a_loop_over_choices() -> None:
    rankings = [
        EncodedRanking((ROWS[0], ROWS[1], ROWS[2]), (2, 1, 2)),
        EncodedRanking((ROWS[3], ROWS[4]), (1, 2)),
        EncodedRanking((ROWS[2], ROWS[1], ROWS[1]), (1, 1, 4)),  # equal texts are no pair
    ]
    expected = 0.0
    pairs = []
    for ranking in rankings:
        judged = list(zip(ranking.rows, ranking.ranks, strict=True))
        last = [rank for _, rank in judged].count(max(ranking.ranks))
        for one, rank in judged:
            among = sum(math.exp(SCORES[other]) for other, beside in judged if beside >= rank)
            weight = (last - 1) / last if rank == max(ranking.ranks) else 1.0
            expected += weight * (math.log(among) - SCORES[one])
        for (one, rank), (other, beside) in combinations(judged, 2):
            if one != other and rank != beside:
                pairs.append((one, other) if rank < beside else (other, one))
    (batch,) = microbatches(by_prompt(rankings, 64), 1000, rankings_batch)
    assert isinstance(batch, Rankings)
    assert (len(batch.rows), batch.weight) == (5, 3.0)
    loss, tally = ranking_loss(MODEL, batch, DENOMINATOR)
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    assert tally.means() == pytest.approx({"reward/loss": expected / 3} | pair_metrics(pairs), rel=1e-4)


def rated(*judged: tuple[int, int, int]) -> Ratings:
    """(row, level, annotator) each."""
    ratings = [EncodedRating(ROWS[number], level, annotator) for number, level, annotator in judged]
    (batch,) = microbatches(by_prompt(ratings, 64), 1000, ratings_batch)
    assert isinstance(batch, Ratings)
    return batch


def test_ratings_are_a_loop_over_levels() -> None:
    thresholds = Thresholds([1, 1, 1], 2)
    assert thresholds.lenience is not None
    with torch.no_grad():
        thresholds.lenience.copy_(torch.tensor([0.5, -0.5]))
    first, second = thresholds.points.cuts.tolist()
    judged = [(0, 0, 0), (1, 2, 0), (2, 1, 0), (0, 1, 1), (1, 1, 1), (3, 2, -1), (4, 0, -1), (3, 0, 1)]
    expected = error = right = 0.0
    for number, level, annotator in judged:
        score = SCORES[ROWS[number]] + (0.5, -0.5, 0.0)[annotator]
        low, high = sigmoid(first - score), sigmoid(second - score)
        expected -= math.log([low, high - low, 1 - high][level])
        guess = 0 if low > 0.5 else 1 if high > 0.5 else 2
        error, right = error + abs(guess - level), right + (guess == level)
    batch = rated(*judged)
    assert len(batch.rows) == 5  # each response once, however often it is rated
    loss, tally = rating_loss(thresholds)(JudgedModel(MODEL, thresholds), batch, DENOMINATOR)
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    # one annotator's three of the first prompt, and nobody's two of the second; 0 rates 1 and 1 alike elsewhere
    pairs = [(ROWS[1], ROWS[0]), (ROWS[2], ROWS[0]), (ROWS[1], ROWS[2]), (ROWS[3], ROWS[4])]
    assert tally.means() == pytest.approx(
        {"reward/loss": expected / 8, "reward/level_error": error / 8, "reward/level_accuracy": right / 8}
        | pair_metrics(pairs),
        rel=1e-4,
    )


def test_labels_are_a_loop_over_two_outcomes() -> None:
    thresholds = Thresholds([2, 1], 0)
    (cut,) = thresholds.points.cuts.tolist()
    judged = [(0, 1, -1), (1, 0, -1), (3, 1, -1), (4, 1, -1)]
    chances = [sigmoid(SCORES[ROWS[number]] - cut) for number, _, _ in judged]
    expected = -sum(math.log(p if level else 1 - p) for p, (_, level, _) in zip(chances, judged, strict=True))
    right = sum((p > 0.5) == level for p, (_, level, _) in zip(chances, judged, strict=True))
    loss, tally = label_loss(thresholds)(JudgedModel(MODEL, thresholds), rated(*judged), DENOMINATOR)
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    assert tally.means() == pytest.approx(
        {
            "reward/loss": expected / 4,
            "reward/level_accuracy": right / 4,
            "reward/accept_rate": sum(chances) / 4,
            "reward/accepted": 0.75,
        }
        | pair_metrics([(ROWS[0], ROWS[1])]),
        rel=1e-4,
    )


def test_where_nothing_is_told_apart_no_accuracy_is_claimed() -> None:
    thresholds = Thresholds([2, 1], 0)
    _, tally = label_loss(thresholds)(JudgedModel(MODEL, thresholds), rated((0, 1, -1), (3, 0, -1)), 1.0)
    assert not {"reward/accuracy", "reward/margin"} & set(tally.means())
