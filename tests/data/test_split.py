from __future__ import annotations

import math
import subprocess
import sys

from keel.data.split import in_validation
from keel.schema import Message

PROMPTS = [f"Question {number}" for number in range(4000)]


def test_about_the_share_is_held_out() -> None:
    for share in (0.05, 0.5):
        held_out = sum(in_validation(prompt, share) for prompt in PROMPTS)
        assert abs(held_out - 4000 * share) < 4 * math.sqrt(4000 * share * (1 - share))


def test_a_share_of_nothing_holds_nothing_out() -> None:
    assert not any(in_validation(prompt, 0.0) for prompt in PROMPTS)


def test_a_larger_share_holds_out_the_same_prompts_and_more() -> None:
    small = {prompt for prompt in PROMPTS if in_validation(prompt, 0.1)}
    large = {prompt for prompt in PROMPTS if in_validation(prompt, 0.2)}
    assert small < large


def test_another_process_decides_alike() -> None:
    program = (
        "from keel.data.split import in_validation; print([in_validation(f'Question {n}', .3) for n in range(50)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([in_validation(f"Question {n}", 0.3) for n in range(50)])


def test_equal_prompts_fall_on_one_side_however_they_are_written() -> None:
    for prompt in PROMPTS[:200]:
        sides = {in_validation(form, 0.5) for form in (prompt, f" {prompt}\n", (Message("user", prompt),))}
        assert len(sides) == 1


def test_the_whole_dialogue_decides() -> None:
    last = Message("user", "Go on.")
    sides = [
        in_validation((Message("user", prompt), Message("assistant", "Yes?"), last), 0.5) for prompt in PROMPTS[:64]
    ]
    assert 16 < sum(sides) < 48


def test_prompts_with_the_same_match_fall_on_one_side() -> None:
    """Forty topics of five prompts each: whole topics are held out, and about the share of them."""
    sides = {
        topic: {in_validation(f"t{topic}_view {n}", 0.3, together=r"^[^_]*") for n in range(5)} for topic in range(40)
    }
    assert all(len(side) == 1 for side in sides.values())
    assert 4 <= sum(side == {True} for side in sides.values()) <= 20
    apart = [in_validation(f"t{topic}_view {n}", 0.3) for topic in range(40) for n in range(5)]
    assert any(len(set(apart[i : i + 5])) == 2 for i in range(0, 200, 5))
    assert in_validation("no match here", 0.3, together="^_") == in_validation("no match here", 0.3)
