from __future__ import annotations

import hashlib
import json
import re

from keel import demo
from keel.demo import language, rows
from keel.demo.traits import measure

DIGEST = "8904c9b7f66d13aae9d926b0a18455030d5108a243167aa95be406544a183111"


def test_rows_are_the_same_on_every_machine() -> None:
    """The digest pins the language and its draws: whoever changes either changes every figure of the demo."""
    data = [demo.demonstrations(), demo.prompts(), demo.heldout()]
    assert [len(part) for part in data] == [6000, 2000, 200]
    assert data == [demo.demonstrations(), demo.prompts(), demo.heldout()]
    assert hashlib.sha256(json.dumps(data).encode()).hexdigest() == DIGEST


def test_heldout_prompts_are_new_compositions_of_known_parts() -> None:
    seen = {row["prompt"] for row in (*demo.demonstrations(), *demo.prompts())}
    heldout = demo.heldout()
    assert len({row["prompt"] for row in heldout}) == len(heldout)
    assert not seen & {row["prompt"] for row in heldout}
    for greeting in ("hello . ", "hi there , ", "quick question . "):
        bare = {prompt.removeprefix(greeting) for prompt in seen}
        assert not bare & {row["prompt"].removeprefix(greeting) for row in heldout}
    for part in ("action", "object"):
        assert {row[part] for row in heldout} <= {row[part] for row in demo.demonstrations()}


def test_prompts_differ_and_name_what_they_ask() -> None:
    prompts = demo.prompts()
    assert len({row["prompt"] for row in prompts}) == len(prompts)
    assert all(row["object"] in row["prompt"].split() for row in prompts)


def test_each_trait_has_its_share_of_the_demonstrations() -> None:
    traits = [measure(row["prompt"], row["response"]) for row in demo.demonstrations()]

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(traits)

    assert 0.83 <= share([t.on_point == 1.0 for t in traits]) <= 0.87
    assert 0.32 <= share([t.polite > 0 for t in traits]) <= 0.38
    assert 0.22 <= share([t.rude > 0 for t in traits]) <= 0.28
    assert not any(t.polite and t.rude for t in traits)
    assert 0.30 <= share([t.rambling > 0 for t in traits]) <= 0.45
    assert 0.05 <= share([t.excess_words == 0 for t in traits]) <= 0.10
    assert all(t.fluent == 1.0 for t in traits)


def test_the_rare_sides_are_rare() -> None:
    """Sentences said twice, and advice of a verb and an object alone, as in "scrub the kettle ."."""
    traits = [measure(row["prompt"], row["response"]) for row in demo.demonstrations()]
    assert 0.01 <= sum(t.repeated_sentences > 0 for t in traits) / len(traits) <= 0.02
    assert sum(t.polite_repeats > 0 for t in traits) / len(traits) <= 0.005
    objects = "|".join(language.OBJECT_CLASSES)
    hints = sum(bool(re.search(rf"(^|\. )\w+ the ({objects}) \.", row["response"])) for row in demo.demonstrations())
    assert 0.01 <= hints / len(traits) <= 0.02


def test_draws_depend_on_purpose_and_index_alone() -> None:
    def some(purpose: int, index: int) -> list[int]:
        draws = rows.Draws(purpose, index)
        return [draws.pick(range(1000)) for _ in range(5)]

    assert some(1, 2) == some(1, 2)
    assert len({tuple(some(purpose, index)) for purpose in range(4) for index in range(4)}) == 16


def test_pick_follows_its_weights() -> None:
    draws = rows.Draws(99)
    picked = [draws.pick("abc", (0.2, 0.0, 0.8)) for _ in range(10_000)]
    assert "b" not in picked
    assert abs(picked.count("a") - 2000) < 5 * (10_000 * 0.2 * 0.8) ** 0.5
