"""Rankings, ratings and labels as pairs with weights, and ratings as levels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest

from keel.config.reward import Reduction, Ties
from keel.data.judgements import RatingScale, comparisons_of, from_ranking, from_ratings, matches
from keel.data.load import Labelled
from keel.errors import UserError
from keel.schema import Comparison, Feedback, Label, Message, Ranking, Rating
from keel.seeds import Draws

DRAWS = Draws(0, "reward")


def ranked(*ranks: int) -> Ranking:
    """Responses a, b, c, … with these ranks."""
    return Ranking("p", tuple("abcdefgh"[: len(ranks)]), ranks, annotator="ann")


def sides(found: Sequence[Comparison]) -> list[tuple[str, Fraction]]:
    """(chosen and rejected, weight), in order of their letters."""
    return sorted((pair.chosen + pair.rejected, Fraction(pair.weight).limit_denominator(100)) for pair in found)


# --- rankings ---


def test_all_pairs_of_a_ranking() -> None:
    sixth = Fraction(1, 6)
    found = from_ranking(ranked(2, 1, 4, 4), "all", "drop", DRAWS)
    assert sides(found) == [("ac", sixth), ("ad", sixth), ("ba", sixth), ("bc", sixth), ("bd", sixth)]
    assert {pair.annotator for pair in found} == {"ann"}
    halves = from_ranking(ranked(2, 1, 4, 4), "all", "half", DRAWS)
    assert sides([pair for pair in halves if pair not in found]) == [("cd", sixth / 2), ("dc", sixth / 2)]
    assert sum(pair.weight for pair in halves) == pytest.approx(1)


def test_adjacent_pairs_of_a_ranking() -> None:
    third = Fraction(1, 3)
    assert sides(from_ranking(ranked(3, 1, 4, 2), "adjacent", "drop", DRAWS)) == [
        ("ac", third), ("bd", third), ("da", third)
    ]  # fmt: skip
    # a and d are equals, in the row's order: b over a, a beside d, d over c
    tied = ranked(2, 1, 4, 2)
    assert sides(from_ranking(tied, "adjacent", "drop", DRAWS)) == [("ba", third), ("dc", third)]
    assert sides(from_ranking(tied, "adjacent", "half", DRAWS)) == [
        ("ad", third / 2), ("ba", third), ("da", third / 2), ("dc", third)
    ]  # fmt: skip


def test_a_tournament_by_hand() -> None:
    """Order c a d b e: c-a and d-b meet, e goes on alone; of the equals d and b the former goes on; a-d, then e."""
    ranks = [1, 2, 3, 2, 4]
    assert matches(ranks, "tournament", [2, 0, 3, 1, 4]) == [(2, 0), (3, 1), (0, 3), (0, 4)]
    assert matches([2, 1], "tournament", [1, 0]) == [(1, 0)]


def test_a_tournament_is_a_draw_of_the_ranking_alone() -> None:
    rankings = [Ranking(f"p{number}", tuple("abcdefgh"), (1, 2, 3, 4, 5, 6, 7, 8)) for number in range(40)]
    found = [from_ranking(one, "tournament", "drop", DRAWS) for one in rankings]
    assert {len(pairs) for pairs in found} == {7}
    assert all(sum(pair.chosen == "a" for pair in pairs) == 3 for pairs in found)  # the best meets three of eight
    assert len({tuple(sides(pairs)) for pairs in found}) > 30
    again = comparisons_of(
        [Labelled(one, None) for one in reversed(rankings)], how="tournament", ties="drop", draws=DRAWS
    )
    assert [row.record for row in again] == [pair for pairs in reversed(found) for pair in pairs]
    assert from_ranking(rankings[0], "tournament", "drop", Draws(1, "reward")) != found[0]


@pytest.mark.parametrize("how", ["all", "adjacent", "tournament"])
def test_two_responses_are_one_comparison(how: Reduction) -> None:
    assert sides(from_ranking(ranked(7, 2), how, "drop", DRAWS)) == [("ba", Fraction(1))]
    assert from_ranking(ranked(1, 1), how, "drop", DRAWS) == []


def test_equal_texts_are_no_pair() -> None:
    same = Ranking("p", ("a", "a ", "b"), (1, 2, 3))
    assert sides(from_ranking(same, "all", "half", DRAWS)) == [("a b", Fraction(1, 3)), ("ab", Fraction(1, 3))]


# --- ratings and labels ---


def rated(response: str, rating: float, annotator: str | None = None) -> Rating:
    return Rating("p", response, rating, annotator=annotator)


def test_ratings_of_a_prompt_share_one_weight() -> None:
    third = Fraction(1, 3)
    ratings = [rated("a", 3), rated("b", 5), rated("c", 3)]
    assert sides(from_ratings(ratings, "drop")) == [("ba", third), ("bc", third)]
    assert sides(from_ratings(ratings, "half")) == [
        ("ac", third / 2), ("ba", third), ("bc", third), ("ca", third / 2)
    ]  # fmt: skip


def test_only_what_one_annotator_gave_on_one_scale_is_compared() -> None:
    ratings = [rated("a", 1, "ann"), rated("b", 5, "bob"), rated("c", 2, "ann"), rated("a", 3, "ann")]
    # a and c twice, for ann rated a twice; never a beside a
    assert sides(from_ratings(ratings, "drop")) == [("ac", Fraction(1, 2)), ("ca", Fraction(1, 2))]
    scales = [Rating("p", "a", 4, scale=(1, 5)), Rating("p", "b", 4, scale=(1, 10))]
    assert from_ratings(scales, "half") == []


def test_labels_are_ratings_of_two_levels() -> None:
    labels = [Label("p", "a", accepted=True), Label("p", "b", accepted=False), Label("p", "c", accepted=True)]
    assert sides(from_ratings(labels, "drop")) == [("ab", Fraction(1, 3)), ("cb", Fraction(1, 3))]


@pytest.mark.parametrize("ties", ["drop", "half"])
def test_prompts_and_sources_are_kept_apart(ties: Ties) -> None:
    chat = (Message("user", "p"),)
    rows: list[Labelled[Feedback]] = [
        Labelled(Rating("p", "a", 1.0), "x", 0),
        Labelled(Rating(chat, "a", 1.0), "x", 0),
        Labelled(Rating("p", "b", 2.0), "x", 0),
        Labelled(Rating("p", "c", 3.0), "x", 1),
        Labelled(Rating(chat, "d", 0.0), "x", 0),
    ]
    found = comparisons_of(rows, how="all", ties=ties, draws=DRAWS)
    assert [(row.record.prompt, row.record.chosen, row.record.rejected) for row in found] == [
        ("p", "b", "a"), (chat, "a", "d")
    ]  # fmt: skip
    assert {(row.kind, row.source) for row in found} == {("x", 0)}
    pair: Labelled[Feedback] = Labelled(Comparison("p", "a", "b", margin=2.0), None)
    assert comparisons_of([pair], how="all", ties=ties, draws=DRAWS) == [pair]


# --- levels ---


def test_the_scale_of_ratings() -> None:
    train = [rated("a", 4, "zoe"), rated("b", 1, "ann"), rated("c", 4), rated("d", 2.5, "ann")]
    scale = RatingScale.of(train, [rated("e", 3, "new")])
    assert scale == RatingScale(levels=(1, 2.5, 3, 4), counts=(1, 1, 0, 2), annotators=("ann", "zoe"))
    assert [scale.level(row) for row in train] == [3, 0, 3, 1]
    assert [scale.annotator(row) for row in (*train, rated("e", 3, "new"))] == [1, 0, -1, 0, -1]
    labels = [Label("p", "a", accepted=False), Label("p", "b", accepted=True)]
    assert [RatingScale.of(labels, []).level(label) for label in labels] == [0, 1]


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ([rated("a", 2), rated("b", 2)], "all 2 ratings are the same number, so there is nothing to learn"),
        ([Label("p", "a", accepted=True)], "all 1 labels say the same, so there is nothing to learn"),
        ([rated("a", number / 7) for number in range(31)], "ratings of 31 different numbers, and ordinal takes 30"),
        (
            [Rating("p", "a", 4, scale=(1, 5)), Rating("p", "b", 3, scale=(1, 10)), rated("c", 1)],
            "ratings on different scales (1–10 and 1–5 and none) have no common levels",
        ),
    ],
)
def test_ratings_that_have_no_levels_are_refused(train: list[Rating | Label], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        RatingScale.of(train, [])
    assert sentence in str(caught.value)
