from __future__ import annotations

import hashlib
import json
import re

from keel import demo
from keel.demo import language, rows
from keel.demo.traits import measure

DODGE = re.compile(
    r"that is hard to say \.|maybe you should ask a friend \.|it depends on many things \."
    r"|i would not do anything about it \.|you could also buy a new \w+ \."
)
HINT = re.compile(rf"(^|\. )\w+ the ({'|'.join(language.OBJECT_CLASSES)}) \.")
DIGEST = "b5915be94786d2b51d814e7c08c69f615106c15f8a973da844e3766490977703"


def test_rows_are_the_same_on_every_machine() -> None:
    """The digest pins the language and its draws: whoever changes either changes every figure of the demo."""
    data = [demo.demonstrations(), demo.prompts(), demo.heldout()]
    assert [len(part) for part in data] == [6000, 1944, 200]  # prompts: 54 requests x 9 of 10 phrasings x 4 greetings
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


def test_three_quarters_are_on_the_point_and_the_rest_miss_it_in_their_own_ways() -> None:
    """The bounds lie 4 standard deviations around the shares: of 6000 replies 18 % dodge; of the others 5 % advise on
    something else, and 1.5 % give a hint.
    """
    demonstrations = demo.demonstrations()
    traits = [measure(row["prompt"], row["response"]) for row in demonstrations]
    on_point = [t.on_point for t in traits]
    dodges = [DODGE.search(row["response"]) is not None for row in demonstrations]
    hints = [HINT.search(row["response"]) is not None for row in demonstrations]
    mistakes = [x < 1 and not dodge and not hint for x, dodge, hint in zip(on_point, dodges, hints, strict=True)]
    assert 0.160 <= sum(dodges) / 6000 <= 0.200
    assert 0.030 <= sum(mistakes) / 6000 <= 0.051  # 0.82 * 0.05 * 0.985
    assert 0.745 <= on_point.count(1.0) / 6000 <= 0.789  # 0.82 * 0.95 * 0.985
    assert {(t.on_point, t.details) for t, dodge in zip(traits, dodges, strict=True) if dodge} == {(0.0, 0)}
    assert {x for x, hint in zip(on_point, hints, strict=True) if hint} == {0.0, 0.2}
    assert not any(dodge and hint for dodge, hint in zip(dodges, hints, strict=True))


def test_each_trait_has_its_share_of_the_demonstrations() -> None:
    traits = [measure(row["prompt"], row["response"]) for row in demo.demonstrations()]

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(traits)

    assert 0.32 <= share([t.polite > 0 for t in traits]) <= 0.38
    assert 0.22 <= share([t.rude > 0 for t in traits]) <= 0.28
    assert not any(t.polite and t.rude for t in traits)
    assert 0.30 <= share([t.rambling > 0 for t in traits]) <= 0.45
    assert 0.05 <= share([t.excess_words == 0 for t in traits]) <= 0.10
    assert all(t.fluent == 1.0 for t in traits)


def test_the_rare_sides_are_rare() -> None:
    """Sentences said twice, and advice of a verb and an object alone, as in "scrub the kettle ."."""
    traits = [measure(row["prompt"], row["response"]) for row in demo.demonstrations()]
    assert 0.008 <= sum(t.repeated_sentences > 0 for t in traits) / len(traits) <= 0.016
    assert sum(t.polite_repeats > 0 for t in traits) / len(traits) <= 0.005
    hints = sum(HINT.search(row["response"]) is not None for row in demo.demonstrations())
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
