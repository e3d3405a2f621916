from __future__ import annotations

from typing import Any

import pytest

from keel.config.data import DataConfig, LayoutName
from keel.data.convert import (
    COMPARISONS,
    DEMONSTRATIONS,
    KINDS,
    LABELS,
    PROMPTS,
    RANKINGS,
    RATINGS,
    Kind,
    convert,
    guess_kind,
)
from keel.data.read import Row
from keel.data.reasons import Finding, Reason
from keel.schema import Comparison, Demonstration, Label, Message, Prompt, Ranking, Rating

SYSTEM, USER, HELLO, WHAT = (
    {"role": role, "content": content}
    for role, content in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}
CHAT = (Message("user", "Hi"),)


def read(kind: Kind[Any], row: dict[str, Any], **config: Any) -> tuple[list[Any], list[Finding], set[str | None]]:
    found = convert(Row("f", 0, row), kind, DataConfig(path="f", **config))
    findings = [finding for one in found for finding in one.findings]
    return [one.record for one in found if one.record is not None], findings, {one.layout for one in found}


SEED_TASK = {
    "id": 1,
    "instruction": "Add.",
    "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "Add what?"}],
}


@pytest.mark.parametrize(
    ("kind", "row", "records", "layout"),
    [
        (DEMONSTRATIONS, {"prompt": "Hi", "completion": "Hello!"}, [Demonstration("Hi", "Hello!")], "completion"),
        (DEMONSTRATIONS, {"prompt": [USER], "completion": [HELLO]}, [Demonstration(CHAT, "Hello!")], "completion"),
        (LABELS, {"prompt": "Hi", "completion": "Ho", "label": False}, [Label("Hi", "Ho", False)], "completion"),
        (DEMONSTRATIONS, {"messages": [USER, HELLO], "id": 1}, [Demonstration(CHAT, "Hello!", {"id": 1})], "messages"),
        (LABELS, {"messages": [USER, HELLO], "label": True}, [Label(CHAT, "Hello!", True)], "messages"),
        (PROMPTS, {"messages": [USER, HELLO]}, [Prompt(CHAT, {"response": "Hello!"})], "messages"),
        (PROMPTS, {"messages": [USER]}, [Prompt(CHAT)], "messages"),
        (PROMPTS, {"prompt": [USER]}, [Prompt(CHAT)], "keel"),
        (
            COMPARISONS,
            {"chosen": [USER, HELLO], "rejected": [USER, WHAT]},
            [Comparison(CHAT, "Hello!", "What?")],
            "keel",
        ),
        (DEMONSTRATIONS, {"conversations": [HUMAN, GPT]}, [Demonstration(CHAT, "Hello!")], "sharegpt"),
        (DEMONSTRATIONS, {"conversations": [USER, HELLO]}, [Demonstration(CHAT, "Hello!")], "sharegpt"),
        (
            DEMONSTRATIONS,
            {"conversations": [HUMAN, GPT], "system": "Be brief."},
            [Demonstration((Message("system", "Be brief."), *CHAT), "Hello!")],
            "sharegpt",
        ),
        (
            DEMONSTRATIONS,
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    HUMAN,
                    {"from": "function_call", "value": "f(1)"},
                    {"from": "observation", "value": "2"},
                    GPT,
                ]
            },
            [
                Demonstration(
                    (Message("system", "s"), *CHAT, Message("assistant", "f(1)"), Message("tool", "2")), "Hello!"
                )
            ],
            "sharegpt",
        ),
        (
            COMPARISONS,
            {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "What?"}},
            [Comparison(CHAT, "Hello!", "What?")],
            "sharegpt",
        ),
        (PROMPTS, {"conversations": [HUMAN, GPT, HUMAN, GPT]}, [], "sharegpt"),
        (
            DEMONSTRATIONS,
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            [Demonstration("Add.\n\n1 1", "2")],
            "alpaca",
        ),
        (
            DEMONSTRATIONS,
            {"instruction": "Sing.", "input": " ", "output": "La.", "system": ""},
            [Demonstration("Sing.", "La.")],
            "alpaca",
        ),
        (
            DEMONSTRATIONS,
            {"instruction": "Hi", "output": "Hello!", "system": "Be brief."},
            [Demonstration((Message("system", "Be brief."), *CHAT), "Hello!")],
            "alpaca",
        ),
        (
            DEMONSTRATIONS,
            SEED_TASK,
            [Demonstration("Add.\n\n1 1", "2", {"id": 1}), Demonstration("Add.", "Add what?", {"id": 1})],
            "alpaca",
        ),
        (PROMPTS, {"instruction": "Sing.", "input": ""}, [Prompt("Sing.")], "alpaca"),
        (
            COMPARISONS,
            {"instruction": "Hi", "chosen": "Hello!", "rejected": "What?"},
            [Comparison("Hi", "Hello!", "What?")],
            "alpaca",
        ),
        (
            COMPARISONS,
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
            [Comparison(CHAT, "Hello!", "What?")],
            "hh",
        ),
        (DEMONSTRATIONS, {"text": "Once.", "id": 1}, [Demonstration("", "Once.", {"id": 1})], "text"),
        (PROMPTS, {"text": "Once."}, [Prompt("Once.")], "text"),
        # Several layouts in one row: the fields of the kind that is wanted come first.
        (DEMONSTRATIONS, {"prompt": "Hi", "messages": [USER, HELLO]}, [Demonstration(CHAT, "Hello!")], "messages"),
        (DEMONSTRATIONS, {"text": "Hi Hello!", "messages": [USER, HELLO]}, [], "messages"),
        (
            COMPARISONS,
            {"prompt": "Hi", "chosen": [USER, HELLO], "rejected": [USER, WHAT], "messages": [USER, HELLO]},
            [Comparison(CHAT, "Hello!", "What?", extra={"messages": [USER, HELLO]})],
            "keel",
        ),
        (RATINGS, {"prompt": "Hi", "response": "Ho", "rating": 3}, [Rating("Hi", "Ho", 3.0)], "keel"),
    ],
)
def test_layouts_are_seen_from_the_columns(
    kind: Kind[Any], row: dict[str, Any], records: list[Any], layout: LayoutName
) -> None:
    found, findings, layouts = read(kind, row)
    assert (findings, layouts) == ([], {layout})
    if records:
        assert found == records
    forced, findings, _ = read(kind, row, layout=layout)
    assert (forced, findings) == (found, [])


def test_the_prompt_of_a_long_dialogue_is_all_before_its_last_turn() -> None:
    (prompt,), _, _ = read(PROMPTS, {"conversations": [HUMAN, GPT, HUMAN, GPT]})
    assert prompt == Prompt((*CHAT, Message("assistant", "Hello!"), *CHAT), {"response": "Hello!"})
    (record,), _, _ = read(DEMONSTRATIONS, {"text": "all of it", "messages": [USER, HELLO, USER, WHAT]})
    assert record == Demonstration(prompt.prompt, "What?", {"text": "all of it"})


@pytest.mark.parametrize(
    ("kind", "row", "layout", "reason", "detail"),
    [
        (DEMONSTRATIONS, {"prompt": "Hi"}, "alpaca", Reason.MISSING_FIELD, "no instruction; the row has prompt"),
        (DEMONSTRATIONS, {"prompt": "Hi"}, "sharegpt", Reason.MISSING_FIELD, "no conversations"),
        (
            DEMONSTRATIONS,
            {"messages": [USER, HELLO]},
            "keel",
            Reason.MISSING_FIELD,
            "no response; the row has messages",
        ),
        (COMPARISONS, {"chosen": "\n\nHuman: Hi", "rejected": "x"}, "keel", Reason.MISSING_FIELD, "no whole dialogue"),
        (
            DEMONSTRATIONS,
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "auto",
            Reason.WRONG_TYPE,
            "“narrator”",
        ),
        (DEMONSTRATIONS, {"conversations": [{"from": "gpt"}]}, "auto", Reason.WRONG_TYPE, "content of a message"),
        (
            DEMONSTRATIONS,
            {"conversations": [HUMAN]},
            "auto",
            Reason.WRONG_TYPE,
            "does not end with the assistant's turn",
        ),
        (DEMONSTRATIONS, {"conversations": "Hi"}, "auto", Reason.MISSING_FIELD, "response is no whole dialogue"),
        (DEMONSTRATIONS, {"instruction": "Add.", "instances": []}, "auto", Reason.WRONG_TYPE, "instances"),
        (DEMONSTRATIONS, {"instruction": 3, "output": "x"}, "auto", Reason.WRONG_TYPE, "instruction is a int"),
        (DEMONSTRATIONS, {"instruction": "Hi", "output": ""}, "auto", Reason.EMPTY_RESPONSE, "response"),
        (DEMONSTRATIONS, {"text": " "}, "auto", Reason.EMPTY_RESPONSE, "text"),
        (DEMONSTRATIONS, {"text": 3}, "auto", Reason.WRONG_TYPE, "text is a int"),
        (DEMONSTRATIONS, {"prompt": "", "response": "x"}, "auto", Reason.EMPTY_PROMPT, ""),
        (DEMONSTRATIONS, {"messages": [USER, HELLO], "label": False}, "auto", Reason.NOT_ACCEPTED, ""),
        (LABELS, {"prompt": "Hi", "response": "x", "accepted": "maybe"}, "auto", Reason.WRONG_TYPE, "neither true"),
        (RATINGS, {"prompt": "Hi", "response": "x", "rating": "good"}, "auto", Reason.WRONG_TYPE, "not a number"),
        (
            RATINGS,
            {"prompt": "Hi", "response": "x", "rating": 6, "scale": [1, 5]},
            "auto",
            Reason.WRONG_TYPE,
            "rating is 6, off its scale from 1 to 5",
        ),
        (
            RATINGS,
            {"prompt": "Hi", "response": "x", "rating": 6, "scale": [5, 1]},
            "auto",
            Reason.WRONG_TYPE,
            "scale is",
        ),
    ],
)
def test_what_a_layout_refuses(
    kind: Kind[Any], row: dict[str, Any], layout: LayoutName, reason: Reason, detail: str
) -> None:
    records, (finding,), _ = read(kind, row, layout=layout)
    assert (records, finding.reason) == ([], reason)
    assert detail in finding.detail


def test_numbers_and_truths_may_be_the_text_of_a_tables_cell() -> None:
    row = {"prompt": "Hi", "response": "Ho", "rating": "4.5", "annotator": ""}
    assert read(RATINGS, row)[0] == [Rating("Hi", "Ho", 4.5)]
    for text, truth in (("True", True), ("1", True), ("no", False), ("0", False)):
        assert read(LABELS, {"prompt": "Hi", "response": "Ho", "accepted": text})[0] == [Label("Hi", "Ho", truth)]
    row = {"prompt": "Hi", "chosen": "Ho", "rejected": "Hu", "margin": "0.5", "weight": ""}
    assert read(COMPARISONS, row)[0] == [Comparison("Hi", "Ho", "Hu", margin=0.5)]


ARGUMENTS = {"fields": {"prompt": "topic", "responses": ["a1", "a2"], "preferred": "label"}}


def test_two_texts_and_the_name_of_the_better_ones_column() -> None:
    row = {"topic": "Tea?", "a1": "Yes.", "a2": "No.", "label": "a2", "id": 7}
    records, findings, layouts = read(COMPARISONS, row, **ARGUMENTS)
    second = Comparison("Tea?", "No.", "Yes.", extra={"id": 7, "chosen_first": False})
    assert (records, findings, layouts) == ([second], [], {"pairs"})
    first = Comparison("Tea?", "Yes.", "No.", extra={"id": 7, "chosen_first": True})
    assert read(COMPARISONS, row | {"label": "a1"}, **ARGUMENTS)[0] == [first]
    assert read(RANKINGS, row, **ARGUMENTS)[0] == [Ranking("Tea?", ("Yes.", "No."), (2, 1), extra={"id": 7})]
    _, (finding,), _ = read(COMPARISONS, row | {"label": "tie"}, **ARGUMENTS)
    assert finding == Finding(Reason.TIE, "f", 0, "")
    _, (finding,), _ = read(COMPARISONS, row | {"label": "b"}, **ARGUMENTS)
    assert "preferred is 'b', none of a1, a2, first, second, tie; say in outcomes" in finding.detail
    _, (finding,), _ = read(COMPARISONS, {"topic": "Tea?", "a1": "Yes.", "label": "a1"}, **ARGUMENTS)
    assert finding.detail == "no responses (column a2); the row has topic, a1, label"


def test_outcomes_say_what_a_value_stands_for() -> None:
    row = {"prompt": "Tea?", "x": "Yes.", "y": "No.", "winner": 1}
    config = {"fields": {"responses": ["x", "y"], "preferred": "winner"}, "outcomes": {0: "first", 1: "second"}}
    assert read(COMPARISONS, row, **config)[0] == [Comparison("Tea?", "No.", "Yes.", extra={"chosen_first": False})]


K_WISE = {"prompt": "Tea?", "responses": ["a", "b", "c"]}


def test_a_ranking_expands_to_all_its_comparisons_but_for_ties() -> None:
    records, findings, _ = read(COMPARISONS, K_WISE | {"ranks": [2, 1, 2], "id": 7, "annotator": "ann"})
    assert records == [
        Comparison("Tea?", "b", "a", annotator="ann", extra={"id": 7, "chosen_first": False}),
        Comparison("Tea?", "b", "c", annotator="ann", extra={"id": 7, "chosen_first": True}),
    ]
    assert findings == [Finding(Reason.TIE, "f", 0, "responses 1 and 3")]
    ranking = Ranking("Tea?", ("a", "b", "c"), (2, 1, 2), "ann", {"id": 7})
    assert read(RANKINGS, K_WISE | {"ranks": [2, 1, 2], "id": 7, "annotator": "ann"})[0] == [ranking]


def test_preferences_between_each_two_of_several() -> None:
    """A circle has comparisons and no ranking."""
    row = K_WISE | {"preferred": [1, 2, 1]}
    outcomes = {"outcomes": {"0": "tie", "1": "first", "2": "second"}}
    records, findings, layouts = read(COMPARISONS, row, **outcomes)
    assert [(record.chosen, record.rejected) for record in records] == [("a", "b"), ("c", "a"), ("b", "c")]
    assert (findings, layouts) == ([], {"pairs"})
    records, (finding,), _ = read(RANKINGS, row, **outcomes)
    assert (records, finding.reason) == ([], Reason.NO_ORDER)
    records, findings, _ = read(RANKINGS, K_WISE | {"preferred": [1, 1, 0]}, **outcomes)
    assert (records, findings) == ([Ranking("Tea?", ("a", "b", "c"), (1, 2, 2))], [])


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"ranks": [1, 2]}, Reason.WRONG_TYPE, "ranks is [1, 2], not a list of 3 whole numbers"),
        ({"ranks": [1, 2, 2.5]}, Reason.WRONG_TYPE, "whole numbers"),
        ({"ranks": "abc"}, Reason.WRONG_TYPE, "whole numbers"),
        ({"responses": ["a"], "ranks": [1]}, Reason.WRONG_TYPE, "no list of two or more"),
        ({"responses": "ab", "ranks": [1, 2]}, Reason.WRONG_TYPE, "no list of two or more"),
        ({"responses": ["a", "", "c"], "ranks": [1, 1, 1]}, Reason.EMPTY_RESPONSE, "response 2"),
        ({"responses": ["a", 3, "c"], "ranks": [1, 1, 1]}, Reason.WRONG_TYPE, "response 2 is a int"),
        ({"responses": [[USER, HELLO], [SYSTEM, HELLO]], "prompt": None, "ranks": [1, 2]}, Reason.PROMPTS_DIFFER, ""),
        ({"preferred": ["first"]}, Reason.WRONG_TYPE, "1 preferences between 3 responses"),
    ],
)
def test_rankings_that_are_refused(changes: dict[str, Any], reason: Reason, detail: str) -> None:
    records, (finding,), _ = read(RANKINGS, K_WISE | changes)
    assert (records, finding.reason) == ([], reason)
    assert detail in finding.detail


@pytest.mark.parametrize("preferred", [["first", 2, "tie"], ["first"], "first"])
def test_preferences_in_keels_own_layout_are_its_own_words(preferred: Any) -> None:
    for kind in (COMPARISONS, RANKINGS):
        records, (finding,), _ = read(kind, K_WISE | {"preferred": preferred}, layout="keel")
        assert (records, finding.reason) == ([], Reason.WRONG_TYPE)
        assert "not a list of 3 of first, second, tie" in finding.detail
    circle = K_WISE | {"preferred": ["first", "second", "first"]}
    assert len(read(COMPARISONS, circle, layout="keel")[0]) == 3


def test_a_fault_of_one_comparison_names_its_responses() -> None:
    records, findings, _ = read(COMPARISONS, K_WISE | {"responses": ["a", "b", " "], "ranks": [1, 2, 3]})
    assert records == [Comparison("Tea?", "a", "b", extra={"chosen_first": True})]
    assert [(finding.reason, finding.detail) for finding in findings] == [
        (Reason.EMPTY_RESPONSE, "responses 1 and 3: rejected"),
        (Reason.EMPTY_RESPONSE, "responses 2 and 3: rejected"),
    ]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [USER, HELLO]}, DEMONSTRATIONS),
        ({"messages": [USER, HELLO], "label": True}, LABELS),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, COMPARISONS),
        (SEED_TASK, DEMONSTRATIONS),
        ({"instruction": "Sing."}, PROMPTS),
        (K_WISE | {"ranks": [1, 2, 3]}, RANKINGS),
        (K_WISE | {"preferred": ["first"] * 3}, COMPARISONS),
        ({"prompt": "Hi", "response": "Ho", "rating": 3}, RATINGS),
    ],
)
def test_the_kind_is_guessed_from_any_layout(row: dict[str, Any], kind: Kind[Any]) -> None:
    assert guess_kind(row, DataConfig(path="f")) is kind


def test_every_kind_is_listed_once() -> None:
    assert len(KINDS) == 6
