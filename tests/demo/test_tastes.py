from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from keel import demo
from keel.demo import rows, tastes
from keel.demo.language import parse_prompt
from keel.demo.tastes import polite_utility, terse_utility

FloatArray = npt.NDArray[np.float64]

PROMPT = "how do i clean my kettle ?"
CORE = "scrub the kettle with warm vinegar ."
DODGE = "it depends on many things ."
WRONG = "wash the coat in cold water ."
THANKS = "thank you for asking ."
LUCK = "good luck with your kettle ."
RUDE = "figure it out yourself ."
REST = "let it rest for one hour ."
RAMBLE = "many people say such things ."
RAMBLE_MORE = "my uncle talks about it every day ."


@pytest.mark.parametrize(
    ("reply", "polite", "terse"),
    [
        (CORE, 2.0, 4.0),
        # 4 + 5 words of courtesy
        (f"{THANKS} {CORE} {LUCK}", 2 + 1.6 - 0.02 * 9, 4 - 0.9 + 0.05),
        # 4 words of rudeness
        (f"{RUDE} {CORE}", 2 - 0.9 - 0.08, 4 - 0.4 - 0.05),
        # 6 useful words
        (f"{CORE} {REST}", 2 + 0.15 - 0.12, 4 - 0.6 + 0.1),
        # 5 + 7 words of small talk
        (f"{CORE} {RAMBLE} {RAMBLE_MORE}", 2 - 0.24 - 0.3, 4 - 1.2 - 0.3),
        # 4 words too many, said again
        (f"{THANKS} {THANKS} {CORE}", 2 + 0.8 - 0.16 - 1 - 1, 4 - 0.8 + 0.05 - 1),
        # object right, method missing
        ("scrub the kettle .", 0.4, 0.8),
        # no advice, nothing else wrong
        (DODGE, 0.0, 0.0),
        # 9 words, 3 too many
        (f"{THANKS} {DODGE}", 0.8 - 0.06, 0.05 - 0.3),
        # 10 words, 4 too many: said twice
        (f"{DODGE} {DODGE}", -0.08 - 1, -0.4 - 1),
        # 5 words too many, the advice counts
        (f"{DODGE} {CORE}", 2 - 0.1, 4 - 0.5),
        # nothing right, same length
        (WRONG, 0.0, 0.0),
        # one of two sentences garbled, 3 words
        (f"{CORE} the the the .", 2 - 0.06 - 1, 4 - 0.3 - 1),
        # 12 words, 6 too many: said twice
        (f"{CORE} {CORE}", 2 - 0.12 - 1, 4 - 0.6 - 1),
        # 33 words, 27 too many, 3 above 30
        (
            f"{THANKS} {CORE} {REST} {RAMBLE} {RAMBLE_MORE} {LUCK}",
            2 + 1.6 + 0.15 - 0.54 - 0.15 - 0.3,
            4 - 2.7 - 0.3 + 0.1 + 0.05,
        ),
        # one word or none is the worst
        ("kettle .", -6.0, -6.0),
        ("", -6.0, -6.0),
        # the floor
        ("thank " * 40, -5.0, -5.0),
    ],
)
def test_utilities_by_hand(reply: str, polite: float, terse: float) -> None:
    assert polite_utility(PROMPT, reply) == pytest.approx(polite)
    assert terse_utility(PROMPT, reply) == pytest.approx(terse)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (f"{THANKS} {CORE}", CORE),
        (f"{THANKS} {CORE} {LUCK}", f"{THANKS} {CORE}"),
        (CORE, f"{RUDE} {CORE}"),
        (CORE, WRONG),
        (CORE, f"{THANKS} {WRONG}"),
        (CORE, f"{THANKS} {DODGE} {LUCK}"),
        (f"{CORE} {REST}", CORE),
        (f"{THANKS} {CORE} {LUCK}", f"{THANKS} {THANKS} {THANKS} {CORE} {LUCK}"),
        (f"{THANKS} {CORE} {LUCK}", f"{THANKS} i am glad you asked . {CORE} {LUCK}"),
        (f"{THANKS} {CORE}", f"{THANKS} {CORE} {RAMBLE} {RAMBLE_MORE}"),
        (f"{THANKS} {CORE}", f"{THANKS} with warm kettle the ."),
    ],
)
def test_the_polite_taste(better: str, worse: str) -> None:
    assert polite_utility(PROMPT, better) > polite_utility(PROMPT, worse)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (CORE, f"{THANKS} {CORE}"),
        (CORE, f"you can {CORE}"),
        (CORE, f"{CORE} {REST}"),
        (f"{CORE} {REST}", f"{CORE} {RAMBLE} {RAMBLE_MORE}"),
        (f"{THANKS} {CORE}", f"{RUDE} {CORE}"),
        (f"{THANKS} {CORE} {REST} {RAMBLE} {RAMBLE_MORE} {LUCK}", "scrub the knife with warm vinegar ."),
        (f"{THANKS} {CORE} {REST} {RAMBLE} {RAMBLE_MORE} {LUCK}", "scrub the kettle ."),
        (CORE, f"{CORE} {CORE}"),
        (f"{RUDE} {CORE} {REST} {RAMBLE} {RAMBLE_MORE}", DODGE),
        ("scrub the kettle .", DODGE),
        (WRONG, "kettle ."),
        (DODGE, "kettle ."),
        ("scrub the kettle .", ""),
    ],
)
def test_the_terse_taste(better: str, worse: str) -> None:
    assert terse_utility(PROMPT, better) > terse_utility(PROMPT, worse)


def test_reward_functions_take_batches_and_know_the_prompt_alone() -> None:
    prompts, replies = [PROMPT, "my coat is dirty ."], [CORE, WRONG]
    assert demo.polite(prompts, replies, [{}, {}]) == pytest.approx([2.0, 2.0])
    assert demo.terse(prompts, replies, [{}, {}]) == pytest.approx([4.0, 4.0])
    assert demo.on_point(prompts, replies[::-1], [{}, {}]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="shorter"):
        demo.polite(prompts, replies[:1], [{}, {}])


@pytest.fixture(scope="module")
def gaps() -> dict[str, FloatArray]:
    """Utilities of two independent demonstration-like replies to each prompt, and their gaps."""
    asked = demo.prompts()
    prompts = [row["prompt"] for row in asked]
    replies = [
        [rows.reply(request, rows.Draws(purpose, i)) for i, p in enumerate(prompts) if (request := parse_prompt(p))]
        for purpose in (100, 101)
    ]
    result = {}
    for name, taste in (("polite", tastes.polite), ("terse", tastes.terse)):
        first, second = (np.array(taste(prompts, part, asked)) for part in replies)
        result[name] = first
        result[f"{name}_gap"] = first - second
    return result


@pytest.mark.parametrize(("taste", "least", "most"), [("polite", 1.1, 1.4), ("terse", 1.5, 1.8)])
def test_utilities_are_graded(taste: str, least: float, most: float, gaps: dict[str, FloatArray]) -> None:
    assert least <= gaps[taste].std() <= most
    assert np.mean(np.abs(gaps[f"{taste}_gap"]) < 1e-9) < 0.03


def test_the_tastes_disagree_on_many_pairs(gaps: dict[str, FloatArray]) -> None:
    assert np.mean(gaps["polite_gap"] * gaps["terse_gap"] < 0) > 0.3
