"""Rows to records: fields mapped, typed and checked; whole dialogues split at their last turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from keel.config.data import FieldName
from keel.data.dialogues import (
    as_messages,
    continue_prompt,
    parse_messages,
    parse_transcript,
    repeated_role,
    role_marker,
    split_last_turn,
)
from keel.data.read import Row
from keel.data.reasons import Finding, Reason, Unusable
from keel.schema import CHOSEN_ENDED, REJECTED_ENDED, Comparison, Demonstration, Dialogue, Message, Prompt

R = TypeVar("R", bound=Prompt | Demonstration | Comparison)
Warn = Callable[[Reason, str], object]


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One kind of record: the fields it is made of, and how."""

    name: str
    fields: tuple[FieldName, ...]
    make: Callable[[Columns, Warn], R]


@dataclass(frozen=True, slots=True)
class Columns:
    """A row seen through the field mapping: by our names. What is no field is `extra`."""

    row: Mapping[str, Any]
    mapping: Mapping[FieldName, str]
    fields: tuple[FieldName, ...]

    def optional(self, field: FieldName) -> Any:
        """The field's value; None if the column is missing or null."""
        return self.row.get(self.mapping.get(field, field))

    def required(self, field: FieldName) -> Any:
        value = self.optional(field)
        if value is None:
            column = self.mapping.get(field, field)
            source = f"{field} (column {column})" if column != field else field
            raise Unusable(Reason.MISSING_FIELD, f"no {source}; the row has {', '.join(self.row) or 'no columns'}")
        return value

    def extra(self) -> dict[str, Any]:
        """The other columns. One that bears the name of a field mapped from elsewhere is shadowed, so left out."""
        taken = {self.mapping.get(field, field) for field in self.fields} | set(self.fields)
        return {name: value for name, value in self.row.items() if name not in taken}


def convert(row: Row, kind: Kind[R], mapping: Mapping[FieldName, str]) -> tuple[R | None, list[Finding]]:
    """The record of a row, and what was found in it; None if it cannot be used, and then the last finding says why.

    A row is used or not for one reason, the first that applies; each warning is given once a row.
    """
    warnings: dict[Reason, str] = {}
    record, problem = None, None
    try:
        if row.value is None:
            assert row.problem is not None
            raise Unusable(row.problem, row.detail)
        record = kind.make(Columns(row.value, mapping, kind.fields), warnings.setdefault)
    except Unusable as error:
        problem = Finding(error.reason, row.file, row.number, error.detail)
    findings = [Finding(reason, row.file, row.number, detail) for reason, detail in warnings.items()]
    return record, findings + ([problem] if problem else [])


def _make_prompt(columns: Columns, warn: Warn) -> Prompt:
    prompt = _dialogue(columns.required("prompt"), "prompt")
    _warn_of_turns(prompt, (), warn)
    _refuse_empty_prompt(prompt)
    return Prompt(prompt, columns.extra())


def _make_demonstration(columns: Columns, warn: Warn) -> Demonstration:
    prompt, response = _side(columns, "response")
    _warn_of_turns(prompt, (response,), warn)
    _refuse_empty(response, "response")
    _refuse_empty_prompt(prompt)
    return Demonstration(prompt, response, columns.extra())


def _make_comparison(columns: Columns, warn: Warn) -> Comparison:
    prompt, chosen = _side(columns, "chosen")
    other_prompt, rejected = _side(columns, "rejected")
    if isinstance(prompt, str) != isinstance(other_prompt, str):
        prompt, other_prompt = as_messages(prompt), as_messages(other_prompt)
    # Where the prompts agree so do the roles of both sides; where they differ the row is refused for that.
    _warn_of_turns(prompt, (chosen,), warn)
    _warn_of_markers(other_prompt, (rejected,), warn)
    if prompt != other_prompt:
        raise Unusable(Reason.PROMPTS_DIFFER)
    for response, field, ended in ((chosen, "chosen", CHOSEN_ENDED), (rejected, "rejected", REJECTED_ENDED)):
        if ended not in columns.row:  # a policy may say nothing, and that was judged; a person's row is a slip
            _refuse_empty(response, field)
    _refuse_empty_prompt(prompt)
    if chosen.strip() == rejected.strip():
        raise Unusable(Reason.SAME_RESPONSES)
    return Comparison(
        prompt,
        chosen,
        rejected,
        margin=_margin(columns.optional("margin")),
        annotator=_annotator(columns.optional("annotator")),
        weight=_weight(columns.optional("weight")),
        extra=columns.extra(),
    )


def guess_kind(columns: Container[str], mapping: Mapping[FieldName, str]) -> Kind[Any] | None:
    """The kind that a row with these columns is most likely meant as; None if it has no field of any."""
    needed: tuple[tuple[Kind[Any], FieldName], ...] = (
        (COMPARISONS, "chosen"),
        (DEMONSTRATIONS, "response"),
        (PROMPTS, "prompt"),
    )
    return next((kind for kind, field in needed if mapping.get(field, field) in columns), None)


PROMPTS = Kind("prompts", ("prompt",), _make_prompt)
DEMONSTRATIONS = Kind("demonstrations", ("prompt", "response"), _make_demonstration)
COMPARISONS = Kind("comparisons", ("prompt", "chosen", "rejected", "margin", "annotator", "weight"), _make_comparison)


def _side(columns: Columns, field: FieldName) -> tuple[Dialogue, str]:
    """The prompt and the response that a row gives for one response field.

    With a prompt, the response is text, or messages that end with it. Without one it is a whole dialogue.
    """
    answer = _dialogue(columns.required(field), field)
    given = columns.optional("prompt")
    if given is not None:
        prompt = _dialogue(given, "prompt")
        if isinstance(answer, str):
            return prompt, answer
        before, response = split_last_turn(answer, field)
        return continue_prompt(prompt, before, field), response
    messages = parse_transcript(answer) if isinstance(answer, str) else answer
    if messages is None:
        raise Unusable(Reason.MISSING_FIELD, f"no prompt, and {field} is no whole dialogue")
    return split_last_turn(messages, field)


def _dialogue(value: Any, field: str) -> Dialogue:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return parse_messages(value, field)
    raise Unusable(Reason.WRONG_TYPE, f"{field} is a {type(value).__name__}, neither text nor a list of messages")


def _warn_of_turns(prompt: Dialogue, responses: tuple[str, ...], warn: Warn) -> None:
    if not isinstance(prompt, str):
        role = repeated_role([*prompt, Message("assistant", "")])
        if role is not None:
            warn(Reason.REPEATED_ROLE, role)
    _warn_of_markers(prompt, responses, warn)


def _warn_of_markers(prompt: Dialogue, responses: tuple[str, ...], warn: Warn) -> None:
    """A prompt of plain text is no turn: it may be written with markers on purpose."""
    turns = () if isinstance(prompt, str) else tuple(message.content for message in prompt)
    for text in turns + responses:
        marker = role_marker(text)
        if marker is not None:
            warn(Reason.ROLE_MARKER, marker)


def _refuse_empty(response: str, field: str) -> None:
    if not response.strip():
        raise Unusable(Reason.EMPTY_RESPONSE, field)


def _refuse_empty_prompt(prompt: Dialogue) -> None:
    messages = as_messages(prompt)
    if not messages or not messages[-1].content.strip():
        raise Unusable(Reason.EMPTY_PROMPT)


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else (true and false are none)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _margin(value: Any) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 0:
        raise Unusable(Reason.WRONG_TYPE, f"margin is {value!r}, not a number of 0 or more")
    return number


def _weight(value: Any) -> float:
    if value is None:
        return 1.0
    number = _number(value)
    if number is None or number <= 0:
        raise Unusable(Reason.WRONG_TYPE, f"weight is {value!r}, not a number above 0")
    return number


def _annotator(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise Unusable(Reason.WRONG_TYPE, f"annotator is {value!r}, not text")
