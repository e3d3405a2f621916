"""Rows to records: fields mapped, typed and checked; whole dialogues split at their last turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from keel.config.data import DataConfig, FieldName, LayoutName
from keel.data import values
from keel.data.dialogues import (
    as_messages,
    continue_prompt,
    parse_messages,
    repeated_role,
    role_marker,
    split_last_turn,
)
from keel.data.layouts import Needs, Values, in_own_names, recognise, rename
from keel.data.rankings import outcomes_of, pairs, ranks_of
from keel.data.read import Row
from keel.data.reasons import Finding, Reason, Unusable
from keel.schema import (
    CHOSEN_ENDED,
    CHOSEN_FIRST,
    REJECTED_ENDED,
    AnyRecord,
    Comparison,
    Demonstration,
    Dialogue,
    Label,
    Message,
    Prompt,
    Ranking,
    Rating,
)

R = TypeVar("R", bound=AnyRecord)
Warn = Callable[[Reason, str], object]
Parts = list[tuple[str, Values | Unusable]]
"""What each record is made of, or why it is not, with a name that tells the records of one row apart."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One kind of record: the fields it is made of, and how."""

    name: str
    fields: tuple[FieldName, ...]
    needs: Needs
    make: Callable[[Columns, Warn], R]
    also_reads: tuple[FieldName, ...] = ()  # what a row may give in place of the fields
    parts: Callable[[Values], Parts] = lambda row: [("", row)]

    @property
    def reads(self) -> tuple[FieldName, ...]:
        return self.fields + self.also_reads


@dataclass(frozen=True, slots=True)
class Converted(Generic[R]):
    """One record, or none: then the last finding says why."""

    record: R | None
    findings: tuple[Finding, ...]
    layout: LayoutName | None = None  # None where the row itself could not be read


@dataclass(frozen=True, slots=True)
class Columns:
    """A row in our names, and what it looked like before. What is no field is `extra`."""

    row: Values
    fields: tuple[FieldName, ...]
    given: tuple[str, ...]
    config: DataConfig

    def optional(self, field: FieldName) -> Any:
        """The field's value; None if the column is missing or null."""
        return self.row.get(field)

    def required(self, field: FieldName) -> Any:
        value = self.optional(field)
        if value is None:
            column = self.config.fields.get(field, field)
            source = f"{field} (column {column})" if column != field else field
            raise Unusable(Reason.MISSING_FIELD, f"no {source}; the row has {', '.join(self.given) or 'no columns'}")
        return value

    def extra(self) -> dict[str, Any]:
        """The other columns."""
        return {name: value for name, value in self.row.items() if name not in self.fields}


def convert(row: Row, kind: Kind[R], config: DataConfig) -> list[Converted[R]]:
    """The records that a row stands for: mostly one, of a ranking one comparison for each two of its responses.

    A record is used or not for one reason, the first that applies; each warning is given once a record.
    """
    if row.value is None:
        assert row.problem is not None
        return [Converted(None, (Finding(row.problem, row.file, row.number, row.detail),))]
    layout = None
    try:
        renamed = rename(row.value, config)
        layout = recognise(renamed, kind.needs) if config.layout == "auto" else config.layout
        parts = [part for each in in_own_names(renamed, layout, config) for part in kind.parts(each)]
    except Unusable as problem:
        return [Converted(None, (Finding(problem.reason, row.file, row.number, problem.detail),), layout)]
    return [_converted(row, kind, config, layout, name, part) for name, part in parts]


def _converted(
    row: Row, kind: Kind[R], config: DataConfig, layout: LayoutName, name: str, part: Values | Unusable
) -> Converted[R]:
    assert row.value is not None
    found: dict[Reason, str] = {}
    record = None
    try:
        if isinstance(part, Unusable):
            raise part
        record = kind.make(Columns(part, kind.fields, tuple(row.value), config), found.setdefault)
    except Unusable as problem:
        found[problem.reason] = problem.detail
    details = {reason: ": ".join(filter(None, (name, detail))) for reason, detail in found.items()}
    findings = tuple(Finding(reason, row.file, row.number, detail) for reason, detail in details.items())
    return Converted(record, findings, layout)


def guess_kind(row: Mapping[str, Any], config: DataConfig) -> Kind[Any] | None:
    """The kind that a row with these columns is most likely meant as; None if it has no field of any."""
    signs: tuple[tuple[Kind[Any], set[FieldName]], ...] = (
        (COMPARISONS, {"chosen"}),
        (COMPARISONS, {"preferred"}),
        (RANKINGS, {"responses", "ranks"}),
        (RATINGS, {"response", "rating"}),
        (LABELS, {"response", "accepted"}),
        (DEMONSTRATIONS, {"response"}),
        (PROMPTS, {"prompt"}),
        (DEMONSTRATIONS, {"text"}),
    )
    for kind, sign in signs:
        try:
            renamed = rename(row, config)
            layout = recognise(renamed, kind.needs) if config.layout == "auto" else config.layout
            found = in_own_names(renamed, layout, config)[0]
        except Unusable:
            continue
        if sign <= {name for name, value in found.items() if value is not None}:
            return kind
    return None


def _make_prompt(columns: Columns, warn: Warn) -> Prompt:
    prompt, extra = _own_prompt(columns)
    _warn_of_turns(prompt, (), warn)
    _refuse_empty_prompt(prompt)
    return Prompt(prompt, extra)


def _own_prompt(columns: Columns) -> tuple[Dialogue, dict[str, Any]]:
    """The row's prompt, or a text, or what stands before the last turn of a whole dialogue; and the other columns."""
    extra = columns.extra()
    if columns.optional("prompt") is None:
        if columns.optional("text") is not None:
            return _dialogue(extra.pop("text"), "text"), extra
        dialogues: tuple[FieldName, ...] = ("response", "chosen")
        for field in dialogues:
            if isinstance(columns.optional(field), list):
                messages = parse_messages(columns.optional(field), field)
                if messages and messages[-1].role == "assistant":
                    return messages[:-1], extra | {field: messages[-1].content}
                return messages, {name: value for name, value in extra.items() if name != field}
    return _dialogue(columns.required("prompt"), "prompt"), extra


def _make_demonstration(columns: Columns, warn: Warn) -> Demonstration:
    if columns.optional("accepted") is False:
        raise Unusable(Reason.NOT_ACCEPTED)
    extra = columns.extra()
    if columns.optional("prompt") is None and columns.optional("response") is None and "text" in extra:
        text = extra.pop("text")
        if not isinstance(text, str):
            raise Unusable(Reason.WRONG_TYPE, f"text is a {type(text).__name__}, not text")
        _refuse_empty(text, "text")
        return Demonstration("", text, extra)
    prompt, response = _response(columns, warn)
    return Demonstration(prompt, response, extra)


def _make_comparison(columns: Columns, warn: Warn) -> Comparison:
    prompt, chosen = _side(columns, columns.required("chosen"), "chosen")
    other_prompt, rejected = _side(columns, columns.required("rejected"), "rejected")
    prompt, other_prompt = _alike([prompt, other_prompt])
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
        margin=values.margin(columns.optional("margin")),
        annotator=values.annotator(columns.optional("annotator")),
        weight=values.weight(columns.optional("weight")),
        extra=columns.extra(),
    )


def _compared(row: Values) -> Parts:
    """One comparison for each two of the responses of a row that ranks them, or tells their preferences."""
    if row.get("chosen") is not None or row.get("responses") is None:
        return [("", row)]
    others = {name: value for name, value in row.items() if name not in ("responses", "ranks", "preferred")}
    responses = _responses(row)
    two_by_two = pairs(len(responses))
    if row.get("ranks") is not None or row.get("preferred") is None:
        outcomes = outcomes_of(values.ranks(row.get("ranks"), len(responses)))
    else:
        outcomes = values.outcomes(row["preferred"], len(two_by_two))
    parts: Parts = []
    for (one, other), outcome in zip(two_by_two, outcomes, strict=True):
        name = f"responses {one + 1} and {other + 1}" if len(responses) > 2 else ""
        if outcome == "tie":
            parts.append((name, Unusable(Reason.TIE)))
        else:
            chosen, rejected = (one, other) if outcome == "first" else (other, one)
            sides = {"chosen": responses[chosen], "rejected": responses[rejected]}
            parts.append((name, others | sides | {CHOSEN_FIRST: chosen < rejected}))
    return parts


def _responses(row: Values) -> list[Any]:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        raise Unusable(Reason.WRONG_TYPE, "responses is no list of two or more")
    return responses


def _make_ranking(columns: Columns, warn: Warn) -> Ranking:
    columns.required("responses")
    given = _responses(columns.row)
    sides = [_side(columns, response, f"response {number}") for number, response in enumerate(given, 1)]
    prompts = _alike([prompt for prompt, _ in sides])
    responses = tuple(response for _, response in sides)
    _warn_of_turns(prompts[0], responses, warn)
    if any(prompt != prompts[0] for prompt in prompts):
        raise Unusable(Reason.PROMPTS_DIFFER)
    for number, response in enumerate(responses, 1):
        _refuse_empty(response, f"response {number}")
    _refuse_empty_prompt(prompts[0])
    preferred = columns.optional("preferred")
    if preferred is None or columns.optional("ranks") is not None:
        ranks = values.ranks(columns.required("ranks"), len(given))
    else:
        found = ranks_of(values.outcomes(preferred, len(pairs(len(given)))), len(given))
        if found is None:
            raise Unusable(Reason.NO_ORDER)
        ranks = found
    extra = {name: value for name, value in columns.extra().items() if name != "preferred"}
    return Ranking(prompts[0], responses, tuple(ranks), values.annotator(columns.optional("annotator")), extra)


def _make_rating(columns: Columns, warn: Warn) -> Rating:
    prompt, response = _response(columns, warn)
    scale = values.scale(columns.optional("scale"))
    rating = values.rating(columns.required("rating"), scale)
    return Rating(prompt, response, rating, scale, values.annotator(columns.optional("annotator")), columns.extra())


def _make_label(columns: Columns, warn: Warn) -> Label:
    prompt, response = _response(columns, warn)
    accepted = values.accepted(columns.required("accepted"))
    return Label(prompt, response, accepted, values.annotator(columns.optional("annotator")), columns.extra())


PROMPTS = Kind("prompts", ("prompt",), [("prompt",)], _make_prompt, also_reads=("response", "chosen", "text"))
DEMONSTRATIONS = Kind(
    "demonstrations", ("prompt", "response"), [("response",)], _make_demonstration, also_reads=("text", "accepted")
)
COMPARISONS = Kind(
    "comparisons",
    ("prompt", "chosen", "rejected", "margin", "annotator", "weight"),
    [("chosen",), ("responses", "ranks")],
    _make_comparison,
    also_reads=("responses", "ranks", "preferred"),
    parts=_compared,
)
RANKINGS = Kind(
    "rankings",
    ("prompt", "responses", "ranks", "annotator"),
    [("responses", "ranks")],
    _make_ranking,
    also_reads=("preferred",),
)
RATINGS = Kind(
    "ratings", ("prompt", "response", "rating", "scale", "annotator"), [("response", "rating")], _make_rating
)
LABELS = Kind("labels", ("prompt", "response", "accepted", "annotator"), [("response", "accepted")], _make_label)
KINDS: dict[str, Kind[Any]] = {
    kind.name: kind for kind in (PROMPTS, DEMONSTRATIONS, COMPARISONS, RANKINGS, RATINGS, LABELS)
}


def _response(columns: Columns, warn: Warn) -> tuple[Dialogue, str]:
    """The prompt and the one response of a row, checked."""
    prompt, response = _side(columns, columns.required("response"), "response")
    _warn_of_turns(prompt, (response,), warn)
    _refuse_empty(response, "response")
    _refuse_empty_prompt(prompt)
    return prompt, response


def _side(columns: Columns, given: Any, field: str) -> tuple[Dialogue, str]:
    """The prompt and the response that a row gives for one response field.

    With a prompt, the response is text, or messages that end with it. Without one it is a whole dialogue.
    """
    answer = _dialogue(given, field)
    before = columns.optional("prompt")
    if before is None:
        if isinstance(answer, str):
            raise Unusable(Reason.MISSING_FIELD, f"no prompt, and {field} is no whole dialogue")
        return split_last_turn(answer, field)
    prompt = _dialogue(before, "prompt")
    if isinstance(answer, str):
        return prompt, answer
    turns, response = split_last_turn(answer, field)
    return continue_prompt(prompt, turns, field), response


def _alike(prompts: list[Dialogue]) -> list[Dialogue]:
    """The prompts as they are if all are text, or all are messages; else all as messages."""
    kinds = {isinstance(prompt, str) for prompt in prompts}
    return prompts if len(kinds) == 1 else [as_messages(prompt) for prompt in prompts]


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
