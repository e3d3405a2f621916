"""What a person is shown, and what the answers say, on replies whose traits are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from keel.annotate.base import Pair
from keel.annotate.terminal import Key
from keel.demo import judging
from keel.demo.judging import REPEATS, Agreement, Favour, changes, choose_pairs, comparisons, favours, self_agreement
from keel.schema import Comparison
from keel.seeds import Draws

A, B, EQUAL, SKIP = Key.FIRST, Key.SECOND, Key.EQUAL, Key.SKIP
PROMPT = "how do i clean my kettle ?"
RIGHT = "scrub the kettle with warm vinegar ."
POLITE = f"{RIGHT} thank you for asking ."
RUDE = f"{RIGHT} you are so lazy ."
TALK = f"{RIGHT} the weather was warm again today ."
DETAIL = f"{RIGHT} start with the dark spots ."
BUSY = f"{POLITE} you are so lazy . the weather was warm again today . start with the dark spots ."
WRONG = "that is hard to say ."
DRAWS = Draws(0, "judging")


def candidates(count: int) -> list[tuple[str, list[str]]]:
    return [(PROMPT, [BUSY, RIGHT, f" {RIGHT} ", POLITE, RUDE, TALK, DETAIL, WRONG, ""])] * count


def originals(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if REPEATS not in pair.row]


def test_each_pair_differs_in_the_trait_whose_turn_it_is() -> None:
    pairs = originals(choose_pairs(candidates(10), DRAWS))
    turns = [{RIGHT, WRONG}, {RIGHT, POLITE}, {RIGHT, RUDE}, {RIGHT, TALK}, {RIGHT, DETAIL}]
    assert [{pair.first, pair.second} for pair in pairs] == turns * 2


def test_sides_are_drawn() -> None:
    pairs = originals(choose_pairs(candidates(200), DRAWS))
    share = np.mean([pair.first == RIGHT for pair in pairs])
    assert 0.4 < share < 0.6  # 200 fair coins: 2.8 standard deviations
    assert pairs == originals(choose_pairs(candidates(200), DRAWS))
    assert pairs != originals(choose_pairs(candidates(200), Draws(1, "judging")))


def test_prompts_whose_replies_are_alike_are_left_out() -> None:
    assert choose_pairs([(PROMPT, [RIGHT, f"{RIGHT} ", ""])], DRAWS) == []


def test_a_tenth_is_shown_again_later_and_mirrored() -> None:
    prompts = [(f"{PROMPT} {number}", [f"{RIGHT} {number}", f"{POLITE} {number}"]) for number in range(40)]
    pairs = choose_pairs(prompts, DRAWS)
    assert len(pairs) == 44
    again = {at: pair for at, pair in enumerate(pairs) if REPEATS in pair.row}
    assert len({pair.row[REPEATS] for pair in again.values()}) == 4
    for at, pair in again.items():
        once = pairs[pair.row[REPEATS]]
        assert (pair.prompt, pair.first, pair.second) == (once.prompt, once.second, once.first)
        assert at - pair.row[REPEATS] > 10
    assert [pair.prompt for pair in originals(pairs)] == [prompt for prompt, _ in prompts]


def test_pairs_survive_the_disk() -> None:
    pairs = choose_pairs(candidates(12), DRAWS)
    assert judging.from_rows(judging.to_rows(pairs)) == pairs


def pair(first: str, second: str, **row: int) -> Pair:
    return Pair(PROMPT, first, second, row)


def test_comparisons_from_answers() -> None:
    pairs = [pair(POLITE, RUDE), pair(TALK, RIGHT), pair(DETAIL, WRONG), pair(RUDE, POLITE, repeats=0), pair("x", "y")]
    won, second, equal = comparisons(pairs, [A, B, EQUAL, A, SKIP])
    assert won == [Comparison(PROMPT, POLITE, RUDE, annotator="you")]
    assert second == [Comparison(PROMPT, RIGHT, TALK, annotator="you")]
    assert [(row.chosen, row.rejected, row.weight) for row in equal] == [(DETAIL, WRONG, 0.5), (WRONG, DETAIL, 0.5)]
    assert len(comparisons(pairs, [A])) == 1  # whoever stops early keeps what was judged


@pytest.mark.parametrize(
    ("once", "again", "expected"),
    [
        (A, B, Agreement(1, 1)),
        (A, A, Agreement(0, 1)),  # the left one both times
        (EQUAL, EQUAL, Agreement(1, 1)),
        (B, EQUAL, Agreement(0, 1)),
        (SKIP, A, Agreement(0, 0)),
    ],
)
def test_self_agreement(once: Key, again: Key, expected: Agreement) -> None:
    pairs = [pair("w", "x"), pair(POLITE, RUDE), pair("y", "z"), pair(RUDE, POLITE, repeats=1)]
    assert self_agreement(pairs, [A, once, A, again]) == expected
    assert self_agreement(pairs, [A, once]) == Agreement(0, 0)


def test_favours_count_only_where_the_trait_differs() -> None:
    rows = [Comparison(PROMPT, POLITE, RUDE), Comparison(PROMPT, POLITE, RIGHT), Comparison(PROMPT, RIGHT, POLITE)]
    found = {favour.trait: favour for favour in favours(rows)}
    assert found["polite phrases"] == Favour("polite phrases", 2, 3)
    assert found["rude phrases"] == Favour("rude phrases", 0, 1)
    assert found["small talk"] == Favour("small talk", 0, 0)
    assert found["words"] == Favour("words", 1, 2)  # polite and rude have ten words each


def test_changes_of_traits() -> None:
    before = [(PROMPT, reply) for reply in (RIGHT, RUDE, RIGHT, RUDE)]
    after = [(PROMPT, reply) for reply in (POLITE, POLITE, POLITE, RIGHT)]
    found = {change.trait: change for change in changes(before, after, 2, DRAWS)}
    polite = found["polite phrases"]
    assert (polite.before, polite.after) == (0.0, 0.75)
    assert (polite.low, polite.high) == (0.5, 1.0)  # two prompts, which moved by 1 and by 1/2
    rude = found["rude phrases"]
    assert (rude.before, rude.after, rude.low, rude.high) == (0.5, 0.0, -0.5, -0.5)


def test_folds_deal_everything_out_once() -> None:
    dealt = judging.folds(11, 4)
    assert sorted(index for fold in dealt for index in fold) == list(range(11))
    assert [len(fold) for fold in dealt] == [3, 3, 3, 2]
    assert len(judging.folds(3, 8)) == 3
