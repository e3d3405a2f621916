"""Rankings, ratings and labels as a reward model takes them: pairs of responses with weights, or levels on a scale."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from keel.config.reward import Reduction, Ties
from keel.data.load import Labelled
from keel.data.rankings import pairs
from keel.errors import UserError
from keel.schema import Comparison, Dialogue, Feedback, Label, Ranking, Rating
from keel.seeds import Draws

_MOST_LEVELS = 30


def comparisons_of(
    rows: Sequence[Labelled[Feedback]], *, how: Reduction, ties: Ties, draws: Draws
) -> list[Labelled[Comparison]]:
    """The judgements as comparisons: of a ranking `from_ranking`, of a prompt's ratings or labels `from_ratings`.

    Those of one source alone meet. Comparisons stay as they are.
    """
    found: list[Labelled[Comparison]] = []
    rated: dict[tuple[int, str | None, Dialogue], list[Rating | Label]] = {}
    for row in rows:
        if isinstance(row.record, Comparison):
            made = [row.record]
        elif isinstance(row.record, Ranking):
            made = from_ranking(row.record, how, ties, draws)
        else:
            rated.setdefault((row.source, row.kind, row.record.prompt), []).append(row.record)
            continue
        found += [Labelled(pair, row.kind, row.source) for pair in made]
    for (source, kind, _), ratings in rated.items():
        found += [Labelled(pair, kind, source) for pair in from_ratings(ratings, ties)]
    return found


def told_apart(rows: Sequence[Labelled[Feedback]], draws: Draws) -> tuple[list[Labelled[Comparison]], int]:
    """Every pair of which the judgements call one better, and how many they call equal: those say nothing of which."""
    pairs = comparisons_of(rows, how="all", ties="drop", draws=draws)
    with_ties = comparisons_of(rows, how="all", ties="half", draws=draws)  # each tie as two
    return pairs, (len(with_ties) - len(pairs)) // 2


def from_ranking(ranking: Ranking, how: Reduction, ties: Ties, draws: Draws) -> list[Comparison]:
    """The comparisons of a ranking's `matches`, each of weight 1 / their number.

    A tournament's order is drawn: a function of the seed and the ranking alone. Two equal texts are no pair. A pair of
    equal ranks is dropped, or a comparison each way of half the weight; it counts in the number either way.
    """
    order = draws.permutation(f"tournament of {ranking.prompt!r} {ranking.responses!r}", len(ranking.ranks)).tolist()
    found = matches(ranking.ranks, how, order)
    settled: list[Comparison] = []
    for one, other in found:
        first, second = ranking.responses[one], ranking.responses[other]
        if first.strip() != second.strip():
            pair = Comparison(ranking.prompt, first, second, annotator=ranking.annotator, weight=1 / len(found))
            settled += _settled(pair, ranking.ranks[other] - ranking.ranks[one], ties)
    return settled


def matches(ranks: Sequence[int], how: Reduction, order: Sequence[int]) -> list[tuple[int, int]]:
    """Which two of K ranked responses are compared, by their numbers.

    `all`: each two, C(K, 2). `adjacent`: each with the next one by rank, K - 1; equals stand in the row's order.
    `tournament`: a knock-out, K - 1. In `order`, a permutation of the K, neighbours meet; the better one goes on, of
    equals the former, and an odd one out without a match, until one is left. So the best are compared most.
    """
    if how == "all":
        return pairs(len(ranks))
    if how == "adjacent":
        by_rank = sorted(range(len(ranks)), key=lambda item: ranks[item])
        return list(pairwise(by_rank))
    found: list[tuple[int, int]] = []
    left = list(order)
    while len(left) > 1:
        met = [(left[at], left[at + 1]) for at in range(0, len(left) - 1, 2)]
        left = [one if ranks[one] <= ranks[other] else other for one, other in met] + left[2 * len(met) :]
        found += met
    return found


def from_ratings(ratings: Sequence[Rating | Label], ties: Ties) -> list[Comparison]:
    """The comparisons between ratings of one prompt, each of weight 1 / their number.

    Annotators differ in what they call good, so each two meet that one annotator (or: nobody named) gave on one scale
    to different texts. The higher number is better, and acceptance is better than rejection. A pair of equal numbers
    is dropped, or a comparison each way of half the weight; it counts in the number either way.
    """
    found = [
        (ratings[one], ratings[other])
        for one, other in pairs(len(ratings))
        if _judge(ratings[one]) == _judge(ratings[other])
        and ratings[one].response.strip() != ratings[other].response.strip()
    ]
    settled: list[Comparison] = []
    for one, other in found:
        pair = Comparison(one.prompt, one.response, other.response, annotator=one.annotator, weight=1 / len(found))
        settled += _settled(pair, _number(one) - _number(other), ties)
    return settled


@dataclass(frozen=True)
class RatingScale:
    """The numbers that ratings take, ascending, how often each is in what is trained on, and who gave them."""

    levels: tuple[float, ...]
    counts: tuple[int, ...]
    annotators: tuple[str, ...]

    @classmethod
    def of(cls, train: Sequence[Rating | Label], validation: Sequence[Rating | Label]) -> RatingScale:
        """Of labels the levels are 0 and 1. Raises UserError where there is nothing to tell apart, or no one scale."""
        counts = Counter(map(_number, train))
        levels = sorted(counts.keys() | set(map(_number, validation)))
        scales = {row.scale for row in (*train, *validation) if isinstance(row, Rating)}
        if len(counts) < 2:
            what = "labels say the same" if isinstance(train[0], Label) else "ratings are the same number"
            raise UserError(f"reward.data: all {len(train)} {what}, so there is nothing to learn; give others too")
        if len(scales) > 1:
            named = " and ".join(sorted("none" if scale is None else f"{scale[0]:g}–{scale[1]:g}" for scale in scales))
            raise UserError(
                f"reward.data: ratings on different scales ({named}) have no common levels; bring them to one with "
                "map, or take objective: bradley_terry with records: ratings"
            )
        if len(levels) > _MOST_LEVELS:
            raise UserError(
                f"reward.data: ratings of {len(levels)} different numbers, and ordinal takes {_MOST_LEVELS} at most; "
                "round them with map, or take objective: bradley_terry with records: ratings"
            )
        annotators = sorted({row.annotator for row in train if row.annotator is not None})
        return cls(tuple(levels), tuple(counts[level] for level in levels), tuple(annotators))

    def level(self, judged: Rating | Label) -> int:
        """Its level, from 0."""
        return bisect_left(self.levels, _number(judged))

    def annotator(self, judged: Rating | Label) -> int:
        """The number of who gave it; -1 for nobody named, or nobody who gave one that is trained on."""
        at = bisect_left(self.annotators, judged.annotator or "")
        return at if self.annotators[at : at + 1] == (judged.annotator,) else -1


def _judge(judged: Rating | Label) -> tuple[str | None, tuple[float, float] | None]:
    return judged.annotator, judged.scale if isinstance(judged, Rating) else None


def _number(judged: Rating | Label) -> float:
    return judged.rating if isinstance(judged, Rating) else float(judged.accepted)


def _settled(pair: Comparison, lead: float, ties: Ties) -> list[Comparison]:
    """The pair as it is where its chosen response leads, turned round where that trails; of equals see `Ties`."""
    turned = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    if lead:
        return [pair if lead > 0 else turned]
    return [] if ties == "drop" else [replace(side, weight=pair.weight / 2) for side in (pair, turned)]
