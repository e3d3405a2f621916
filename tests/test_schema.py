from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from keel.schema import Comparison, Demonstration, Label, Message, Prompt, Ranking, Rating


def test_rows_are_json_objects_with_the_extra_columns_beside_the_fields() -> None:
    chat = (Message("system", "Be kind."), Message("user", "Hi"))
    record = Comparison(chat, "Hello!", "What?", margin=0.5, annotator="ann", weight=2.0, extra={"source": {"id": 7}})
    assert json.loads(json.dumps(record.to_row())) == {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "chosen": "Hello!",
        "rejected": "What?",
        "margin": 0.5,
        "annotator": "ann",
        "weight": 2.0,
        "source": {"id": 7},
    }


def test_optional_fields_that_are_not_set_are_not_written() -> None:
    assert Comparison("Hi", "Hello!", "What?").to_row() == {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


@pytest.mark.parametrize(("stated", "known"), [(0.9, 0.9), (1, 1.0), (0, 0.0), (True, None), ("1", None)])
def test_how_likely_a_label_was(stated: object, known: float | None) -> None:
    assert Comparison("Hi", "a", "b", extra={"first_probability": stated}).first_probability == known
    assert Comparison("Hi", "a", "b").first_probability is None


def test_prompts_and_demonstrations_as_rows() -> None:
    assert Prompt("Hi", {"answer": "4"}).to_row() == {"prompt": "Hi", "answer": "4"}
    assert Demonstration("Hi", "Hello!").to_row() == {"prompt": "Hi", "response": "Hello!"}


def test_rankings_ratings_and_labels_as_rows() -> None:
    assert Ranking("Hi", ("a", "b"), (2, 1), "ann", {"id": 7}).to_row() == {
        "prompt": "Hi",
        "responses": ["a", "b"],
        "ranks": [2, 1],
        "annotator": "ann",
        "id": 7,
    }
    assert Rating("Hi", "a", 3.0).to_row() == {"prompt": "Hi", "response": "a", "rating": 3.0}
    assert Rating("Hi", "a", 3.0, (1.0, 5.0)).to_row()["scale"] == [1.0, 5.0]
    assert Label("Hi", "a", False).to_row() == {"prompt": "Hi", "response": "a", "accepted": False}
    assert Demonstration("", "Once.", {"id": 7}).to_row() == {"text": "Once.", "id": 7}


def test_records_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="2 responses with 3 ranks"):
        Ranking("Hi", ("a", "b"), (1, 2, 3))
    with pytest.raises(ValueError, match="1 responses with 1 ranks"):
        Ranking("Hi", ("a",), (1,))
    with pytest.raises(ValueError, match=r"a rating of 6.0 on a scale from 1.0 to 5.0"):
        Rating("Hi", "a", 6.0, (1.0, 5.0))
    with pytest.raises(ValueError, match=r"\['text'\]"):
        Demonstration("", "Once.", {"text": "Twice."})


def test_extra_columns_may_not_shadow_a_field() -> None:
    with pytest.raises(ValueError, match=r"\['response'\]"):
        Demonstration("Hi", "Hello!", {"response": "Bye", "id": 1})
    assert Prompt("Hi", {"response": "free here"}).to_row()["response"] == "free here"


def test_records_are_frozen_and_hashable() -> None:
    record = Prompt("Hi", {"list": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.prompt = "Bye"  # type: ignore[misc]  # the very thing that must fail
    assert hash(record) == hash(Prompt("Hi", {"list": [2]}))
    assert record != Prompt("Hi", {"list": [2]})


def test_what_lies_on_disk_is_read_without_torch() -> None:
    program = (
        "import sys, keel.schema, keel.config.data, keel.data.load, keel.data.write, keel.references, keel.cli.data;"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
