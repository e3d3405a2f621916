"""The layouts that rows come in, and each as rows in Keel's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keel.config.data import DataConfig, FieldName, LayoutName, Outcome
from keel.data.dialogues import parse_transcript
from keel.data.rankings import pairs
from keel.data.reasons import Reason, Unusable

Values = dict[str, Any]
Needs = Sequence[tuple[FieldName, ...]]
"""The fields that a kind of record cannot do without: one of these sets, and a prompt where that does not tell it."""

_OUTCOMES: dict[str, Outcome] = {"first": "first", "second": "second", "tie": "tie"}


def rename(row: Mapping[str, Any], config: DataConfig) -> Values:
    """The row with its columns under our names, as `fields` maps them, and without nulls among those.

    A column that bears the name of a field which is mapped from another column is left out.
    Raises Unusable if one of the several columns of `responses` is missing or null.
    """
    fields = {ours: _column(row, theirs) for ours, theirs in config.fields.items()}
    taken = {name for theirs in config.fields.values() for name in _names(theirs)} | set(fields)
    others = {name: value for name, value in row.items() if name not in taken}
    return {ours: value for ours, value in fields.items() if value is not None} | others


def _names(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _column(row: Mapping[str, Any], theirs: str | tuple[str, ...]) -> Any:
    """A column's value; of several columns the list of theirs."""
    if isinstance(theirs, str):
        return row.get(theirs)
    missing = [name for name in theirs if row.get(name) is None]
    if missing:
        raise Unusable(Reason.MISSING_FIELD, f"no responses (column {missing[0]}); the row has {', '.join(row)}")
    return [row[name] for name in theirs]


def recognise(row: Mapping[str, Any], needs: Needs) -> LayoutName:
    """The layout that a row's columns speak for, where a record that `needs` these fields is wanted."""
    has = {name for name, value in row.items() if value is not None}
    has_needed = any(has.issuperset(fields) for fields in needs)
    if "prompt" in has and has_needed:
        return "keel"
    if {"responses", "preferred"} <= has:
        return "pairs"
    if "instruction" in has and ({"output", "instances", "chosen"} & has or _is_prompt(needs)):
        return "alpaca"
    if "conversations" in has:
        return "sharegpt"
    if "prompt" not in has and any(_transcript(row.get(field)) for field in ("chosen", "response")):
        return "hh"
    if not has_needed:
        names: tuple[LayoutName, ...] = ("messages", "completion", "text")
        return next((name for name in names if name in has), "keel")
    return "keel"


def _is_prompt(needs: Needs) -> bool:
    return ("prompt",) in needs


def in_own_names(row: Mapping[str, Any], layout: LayoutName, config: DataConfig) -> list[Values]:
    """What a row (renamed already) of a layout says, in Keel's own names: mostly one row, of seed tasks one a case.

    Raises Unusable if the row lacks what makes the layout.
    """
    if layout == "pairs":
        return [_pairs(row, config)]
    return _READERS[layout](row)


def _own(row: Mapping[str, Any]) -> list[Values]:
    return [dict(row)]


def _messages(row: Mapping[str, Any]) -> list[Values]:
    return [_with_label(_moved(row, "messages", "response"))]


def _completion(row: Mapping[str, Any]) -> list[Values]:
    return [_with_label(_moved(row, "completion", "response"))]


def _sharegpt(row: Mapping[str, Any]) -> list[Values]:
    """A whole dialogue; or, with `chosen` and `rejected` of one message each, the prompt of both."""
    compared = {"chosen", "rejected"} <= row.keys()
    dialogue: FieldName = "prompt" if compared else "response"
    found = _moved(row, "conversations", dialogue)
    system = found.pop("system", None)
    if _is_said(system) and isinstance(found[dialogue], list):
        found[dialogue] = [{"role": "system", "content": system}, *found[dialogue]]
    for side in ("chosen", "rejected"):
        if isinstance(found.get(side), dict):
            found[side] = [found[side]]
    return [_with_label(found)]


def _alpaca(row: Mapping[str, Any]) -> list[Values]:
    """instruction, input (below it, where there is one) and output; or a seed task, whose `instances` hold both."""
    found = dict(row)
    instruction = _taken(found, "instruction")
    if "instances" not in found:
        return [_with_label(_answered(found, instruction))]
    instances = found.pop("instances")
    if not isinstance(instances, list) or not instances or not all(isinstance(case, dict) for case in instances):
        raise Unusable(Reason.WRONG_TYPE, "instances is no list of objects")
    return [_answered(found | case, instruction) for case in instances]


def _answered(row: Values, instruction: Any) -> Values:
    given, system = row.pop("input", None), row.pop("system", None)
    for name, value in (("instruction", instruction), ("input", given)):
        if value is not None and not isinstance(value, str):
            raise Unusable(Reason.WRONG_TYPE, f"{name} is a {type(value).__name__}, not text")
    prompt = f"{instruction}\n\n{given}" if _is_said(given) else instruction
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    row["prompt"] = messages if _is_said(system) else prompt
    if row.get("output") is not None:
        row["response"] = row.pop("output")
    return row


def _transcripts(row: Mapping[str, Any]) -> list[Values]:
    """hh-rlhf: each response is a whole dialogue written as one text."""
    parsed = {field: _transcript(row.get(field)) for field in ("chosen", "rejected", "response")}
    return [dict(row) | {field: messages for field, messages in parsed.items() if messages is not None}]


def _transcript(value: Any) -> list[Values] | None:
    messages = parse_transcript(value) if isinstance(value, str) else None
    return None if messages is None else [{"role": turn.role, "content": turn.content} for turn in messages]


_READERS: dict[LayoutName, Callable[[Mapping[str, Any]], list[Values]]] = {
    "keel": _own,
    "messages": _messages,
    "completion": _completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "hh": _transcripts,
    "text": _own,
}


def _pairs(row: Mapping[str, Any], config: DataConfig) -> Values:
    """`preferred` as first, second or tie for each two of the responses: one value, or a list of them."""
    found = dict(row)
    responses, preferred = _taken(found, "responses"), _taken(found, "preferred")
    if not isinstance(responses, list):
        raise Unusable(Reason.WRONG_TYPE, f"responses is a {type(responses).__name__}, not a list")
    values = preferred if isinstance(preferred, list) else [preferred]
    wanted = pairs(len(responses))
    if len(values) != len(wanted):
        raise Unusable(Reason.WRONG_TYPE, f"{len(values)} preferences between {len(responses)} responses")
    columns = config.fields.get("responses")
    outcomes = []
    for value, (one, other) in zip(values, wanted, strict=True):
        named: dict[str, Outcome] = {}
        if isinstance(columns, tuple):
            named = {columns[one]: "first", columns[other]: "second"}
        outcomes.append(_outcome(value, named | _OUTCOMES | config.outcomes))
    return found | {"responses": responses, "preferred": outcomes}


def _outcome(value: Any, meanings: Mapping[str, Outcome]) -> Outcome:
    if str(value) not in meanings:
        known = ", ".join(meanings)
        raise Unusable(Reason.WRONG_TYPE, f"preferred is {value!r}, none of {known}; say in outcomes what it means")
    return meanings[str(value)]


def _taken(row: Values, column: str) -> Any:
    """The column's value, taken out of the row."""
    value = row.pop(column, None)
    if value is None:
        raise Unusable(Reason.MISSING_FIELD, f"no {column}; the row has {', '.join(row) or 'no other columns'}")
    return value


def _moved(row: Mapping[str, Any], column: str, field: FieldName) -> Values:
    found = dict(row)
    value = _taken(found, column)
    return found | {field: value}


def _with_label(row: Values) -> Values:
    """A `label` that is true or false says whether the response was accepted."""
    if isinstance(row.get("label"), bool):
        row.setdefault("accepted", row.pop("label"))
    return row


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
