from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from keel.schema import Comparison, Demonstration, Message, Prompt


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


def test_prompts_and_demonstrations_as_rows() -> None:
    assert Prompt("Hi", {"answer": "4"}).to_row() == {"prompt": "Hi", "answer": "4"}
    assert Demonstration("Hi", "Hello!").to_row() == {"prompt": "Hi", "response": "Hello!"}


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
