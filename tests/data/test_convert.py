from __future__ import annotations

from typing import Any

import pytest

from keel.config.data import DataConfig, FieldName
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, PROMPTS, Kind, convert, guess_kind
from keel.data.read import Row
from keel.data.reasons import Finding, Reason
from keel.schema import Comparison, Demonstration, Message, Prompt

USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
WHAT = {"role": "assistant", "content": "What?"}
CHAT = (Message("user", "Hi"),)


def one(row: Row, kind: Kind[Any], fields: dict[FieldName, str] | None = None) -> tuple[Any, list[Finding]]:
    """The one record of a row, and the findings."""
    (found,) = convert(row, kind, DataConfig(path="f", fields=dict(fields or {})))
    return found.record, list(found.findings)


def converted(kind: Kind[Any], row: dict[str, Any], fields: dict[FieldName, str] | None = None) -> Any:
    record, findings = one(Row("f", 0, row), kind, fields)
    assert findings == []
    return record


def test_plain_text() -> None:
    assert converted(PROMPTS, {"prompt": "Hi", "chosen": "x"}) == Prompt("Hi", {"chosen": "x"})
    assert converted(DEMONSTRATIONS, {"prompt": "Hi", "response": " Hello! "}) == Demonstration("Hi", " Hello! ")
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1, "annotator": "a", "weight": 0.5}
    assert converted(COMPARISONS, row | {"id": 3}) == Comparison("Hi", "Hello!", "What?", 1.0, "a", 0.5, {"id": 3})


def test_null_is_absent() -> None:
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": None, "annotator": None, "weight": None}
    assert converted(COMPARISONS, row) == Comparison("Hi", "Hello!", "What?")


def test_chat_messages() -> None:
    assert converted(PROMPTS, {"prompt": [USER | {"name": "ann"}]}) == Prompt(CHAT)
    assert converted(DEMONSTRATIONS, {"prompt": [USER], "response": "Hello!"}) == Demonstration(CHAT, "Hello!")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": [HELLO], "rejected": [WHAT]},
        {"prompt": [USER], "chosen": [USER, HELLO], "rejected": [USER, WHAT]},
        {"prompt": [USER], "chosen": [USER, HELLO], "rejected": "What?"},
        {"prompt": "Hi", "chosen": [USER, HELLO], "rejected": [USER, WHAT]},
        {"prompt": "Hi", "chosen": [HELLO], "rejected": "What?"},
        {"chosen": [USER, HELLO], "rejected": [USER, WHAT]},
        {"prompt": None, "chosen": [USER, HELLO], "rejected": [USER, WHAT]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    ],
)
def test_all_ways_to_write_one_comparison(row: dict[str, Any]) -> None:
    assert converted(COMPARISONS, row) == Comparison(CHAT, "Hello!", "What?")


def test_a_whole_dialogue_is_split_at_its_last_turn() -> None:
    opening = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A joke.\n\nAssistant:"
    record = converted(COMPARISONS, {"chosen": opening + " Knock, knock.", "rejected": opening + " No."})
    assert record.prompt == (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "A joke."))
    assert (record.chosen, record.rejected) == ("Knock, knock.", "No.")
    demonstration = converted(DEMONSTRATIONS, {"chosen": opening + " Knock, knock."}, {"response": "chosen"})
    assert demonstration == Demonstration(record.prompt, "Knock, knock.")
    chat = {"messages": [USER, HELLO]}
    assert converted(DEMONSTRATIONS, chat, {"response": "messages"}) == Demonstration(CHAT, "Hello!")


def test_fields_are_read_from_the_mapped_columns() -> None:
    row = {"question": "Hi", "better": "Hello!", "worse": "What?", "id": 3}
    mapping: dict[FieldName, str] = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert converted(COMPARISONS, row, mapping) == Comparison("Hi", "Hello!", "What?", extra={"id": 3})
    swapped = {"prompt": "Hi", "chosen": "What?", "rejected": "Hello!"}
    assert converted(COMPARISONS, swapped, {"chosen": "rejected", "rejected": "chosen"}).chosen == "Hello!"


def test_a_column_that_bears_a_mapped_fields_name_is_left_out() -> None:
    row = {"prompt": "old", "question": "Hi", "id": 1}
    assert converted(PROMPTS, row, {"prompt": "question"}) == Prompt("Hi", {"id": 1})


PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def test_an_annotators_number_is_a_name() -> None:
    record, findings = one(Row("f", 7, PAIR | {"annotator": 0}), COMPARISONS)
    assert isinstance(record, Comparison)
    assert (record.annotator, findings) == ("0", [])


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"chosen": None}, Reason.MISSING_FIELD, "no chosen; the row has prompt, chosen, rejected"),
        ({"prompt": None}, Reason.MISSING_FIELD, "no prompt, and chosen is no whole dialogue"),
        ({"prompt": 3}, Reason.WRONG_TYPE, "prompt is a int, neither text nor a list of messages"),
        ({"rejected": {"text": "What?"}}, Reason.WRONG_TYPE, "rejected is a dict, neither"),
        ({"prompt": ["Hi"]}, Reason.WRONG_TYPE, "prompt: a message is {"),
        ({"prompt": [{"role": "user"}]}, Reason.WRONG_TYPE, "the content of a message is not text"),
        ({"prompt": [USER | {"role": "human"}]}, Reason.WRONG_TYPE, "role “human” is none of system, user"),
        ({"chosen": [USER]}, Reason.WRONG_TYPE, "chosen: the dialogue does not end with the assistant's turn"),
        ({"chosen": []}, Reason.WRONG_TYPE, "chosen: the dialogue does not end with the assistant's turn"),
        ({"margin": -0.5}, Reason.WRONG_TYPE, "margin is -0.5"),
        ({"margin": "much"}, Reason.WRONG_TYPE, "margin is 'much'"),
        ({"margin": "nan"}, Reason.WRONG_TYPE, "margin is 'nan'"),
        ({"margin": float("nan")}, Reason.WRONG_TYPE, "margin is nan"),
        ({"margin": True}, Reason.WRONG_TYPE, "margin is True"),
        ({"weight": 0}, Reason.WRONG_TYPE, "weight is 0"),
        ({"weight": float("inf")}, Reason.WRONG_TYPE, "weight is inf"),
        ({"annotator": True}, Reason.WRONG_TYPE, "annotator is True"),
        ({"annotator": 1.5}, Reason.WRONG_TYPE, "annotator is 1.5, neither text nor a whole number"),
        ({"chosen": " \n"}, Reason.EMPTY_RESPONSE, "chosen"),
        ({"rejected": ""}, Reason.EMPTY_RESPONSE, "rejected"),
        ({"prompt": " "}, Reason.EMPTY_PROMPT, ""),
        ({"prompt": []}, Reason.EMPTY_PROMPT, ""),
        ({"prompt": [USER, HELLO, USER | {"content": ""}]}, Reason.EMPTY_PROMPT, ""),
        ({"rejected": "Hello! "}, Reason.SAME_RESPONSES, ""),
        ({"chosen": [USER | {"content": "Ho"}, HELLO]}, Reason.PROMPTS_DIFFER, "messages of chosen"),
        ({"chosen": [HELLO, USER, HELLO]}, Reason.PROMPTS_DIFFER, ""),
    ],
)
def test_what_is_refused_and_why(changes: dict[str, Any], reason: Reason, detail: str) -> None:
    record, findings = one(Row("f", 7, PAIR | changes), COMPARISONS)
    (finding,) = [finding for finding in findings if not finding.reason.is_warning]
    assert record is None
    assert (finding.reason, finding.file, finding.row) == (reason, "f", 7)
    assert detail in finding.detail


def test_a_missing_column_is_named_as_it_is_mapped() -> None:
    _, (finding,) = one(Row("f", 0, {"better": "x", "worse": "y"}), COMPARISONS, {"chosen": "best"})
    assert finding.detail == "no chosen (column best); the row has better, worse"


def test_a_row_that_could_not_be_read_keeps_its_problem() -> None:
    record, findings = one(Row("f", 3, None, Reason.NOT_JSON, "why"), PROMPTS)
    assert (record, findings) == (None, [Finding(Reason.NOT_JSON, "f", 3, "why")])


@pytest.mark.parametrize(
    ("kind", "row", "reasons"),
    [
        (PROMPTS, {"prompt": [USER, USER]}, [Reason.REPEATED_ROLE]),
        (PROMPTS, {"prompt": [USER, HELLO]}, [Reason.REPEATED_ROLE]),  # the response would be the assistant's second
        (PROMPTS, {"prompt": "Human: Hi\n\nAssistant:"}, []),  # plain text, written so on purpose
        (PROMPTS, {"prompt": [USER | {"content": "Hi Human: Ho Assistant: Hu"}]}, [Reason.ROLE_MARKER]),
        (DEMONSTRATIONS, {"prompt": "Hi", "response": "Ho Human: Hu"}, [Reason.ROLE_MARKER]),
        (COMPARISONS, PAIR | {"rejected": "Ho Human: Hu"}, [Reason.ROLE_MARKER]),
        (
            COMPARISONS,
            {"chosen": [USER, HELLO, HELLO], "rejected": [USER, HELLO, WHAT | {"content": "Human:"}]},
            [Reason.REPEATED_ROLE, Reason.ROLE_MARKER],
        ),
    ],
)
def test_warnings_leave_the_row_in_use(kind: Kind[Any], row: dict[str, Any], reasons: list[Reason]) -> None:
    record, findings = one(Row("f", 0, row), kind)
    assert record is not None
    assert [finding.reason for finding in findings] == reasons


def test_a_row_may_have_warnings_and_be_refused() -> None:
    row = {"chosen": [USER, HELLO, HELLO], "rejected": [USER, WHAT]}
    record, findings = one(Row("f", 0, row), COMPARISONS)
    assert record is None
    assert [finding.reason for finding in findings] == [Reason.REPEATED_ROLE, Reason.PROMPTS_DIFFER]


def guessed(row: dict[str, Any], fields: dict[FieldName, str] | None = None) -> Kind[Any] | None:
    return guess_kind(row, DataConfig(path="f", fields=dict(fields or {})))


def test_the_kind_is_guessed_from_the_columns() -> None:
    assert guessed({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "response": "Ho"}) is COMPARISONS
    assert guessed({"prompt": "Hi", "response": "Hello!"}) is DEMONSTRATIONS
    assert guessed({"prompt": "Hi"}) is PROMPTS
    assert guessed({"question": "Hello!", "prompt": "Hi"}, {"response": "question"}) is DEMONSTRATIONS
    assert guessed({"prompt": "Hi", "text": "Hi and more"}) is PROMPTS
    assert guessed({"text": "Hi"}) is DEMONSTRATIONS
    assert guessed({"body": "Hi"}) is None


def test_a_collected_response_may_be_empty() -> None:
    """A policy that said nothing was judged for it; without the column that collecting writes it is a slip."""
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "", "chosen_ended": True, "rejected_ended": True}
    assert converted(COMPARISONS, row).rejected == ""
    del row["rejected_ended"]
    record, findings = one(Row("f", 0, row), COMPARISONS)
    assert (record, [finding.reason for finding in findings]) == (None, [Reason.EMPTY_RESPONSE])
