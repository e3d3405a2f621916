from __future__ import annotations

import re

import pytest

from keel.demo import language, rows
from keel.demo.language import Request


def test_the_language_is_small() -> None:
    texts = [row[field] for row in (*rows.demonstrations(), *rows.heldout()) for field in ("prompt", "response")]
    vocabulary = {token for text in texts for token in text.split()}
    assert 150 <= len(vocabulary) <= 250
    assert all(re.fullmatch(r"[a-z]+|[.,?!]", token) for token in vocabulary)


def test_prompts_and_replies_have_the_promised_lengths() -> None:
    demonstrations = rows.demonstrations()
    assert all(6 <= len(row["prompt"].split()) <= 15 for row in demonstrations)
    lengths = [len(row["response"].split()) for row in demonstrations]
    assert min(lengths) >= 4  # a hint: verb the object .
    assert max(lengths) <= 48
    assert sum(5 <= length <= 36 for length in lengths) > 0.97 * len(lengths)
    assert 15 <= sum(lengths) / len(lengths) <= 24


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        ("how do i clean my kettle ?", Request("clean", "kettle")),
        ("My KETTLE is dirty. What should I do?", Request("clean", "kettle")),
        ("hello . help , the rose is very wet !", Request("dry", "rose")),
        ("my coat looks pale . how do i colour it ?", Request("colour", "coat")),
        ("how do i fix my rose ?", None),  # nothing fixes a plant
        ("how do i clean my moon ?", None),
        ("tell me about the kettle", None),
        ("", None),
    ],
)
def test_prompts_are_understood(prompt: str, request_: Request | None) -> None:
    assert language.parse_prompt(prompt) == request_


def test_every_prompt_means_its_request() -> None:
    for prompts in rows.split_prompts():
        for prompt in prompts:
            assert language.parse_prompt(prompt.text) == prompt.request


def test_every_request_has_its_own_method_for_its_class() -> None:
    assert len(set(language.METHODS.values())) == len(language.METHODS)
    assert language.advice(language.right_method(Request("clean", "kettle")), "kettle") == (
        "scrub the kettle with warm vinegar ."
    )
    assert len(language.requests()) == 54  # 27 methods, each for the two objects of a class
    assert {request.object for request in language.requests()} == set(language.OBJECT_CLASSES)


def test_markers_stand_in_their_own_sentence_only() -> None:
    markers = language.POLITE_MARKERS | language.RUDE_MARKERS
    for sentence, readings in language.sentences().items():
        found = [word for word in sentence if word in markers]
        assert len(found) == (readings[0].kind in ("polite", "rude"))


def test_sentences_split_at_end_marks_and_survive_missing_ones() -> None:
    assert language.split_sentences("Rinse it . ok?? . now , go") == [("rinse", "it"), ("ok",), ("now", "go")]
    assert language.split_sentences(" .. ?") == []
