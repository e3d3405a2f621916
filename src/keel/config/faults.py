"""What is wrong with a recipe's tree, in sentences: pydantic's findings with the key, the range, or the key meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from reprlib import Repr
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_INTERNAL = ("function-", "literal[", "[key]", "[source", "tagged-union[", "tuple[")  # what pydantic adds to a path
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

_short = Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = 60
"""A value as a sentence quotes it: YAML's aliases can make a few lines stand for more than the memory holds."""


def sentences_of(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One sentence for each fault that was found while a tree was read as `root`."""
    faults = error.errors(include_url=False)
    # Where a word may stand for a record, a fault inside the record is the one meant.
    meant = [fault for fault in faults if not any(str(part).startswith("literal[") for part in fault["loc"])]
    return [_sentence(fault, root) for fault in meant or faults]


def _sentence(fault: Any, root: type[BaseModel]) -> str:
    path = [part for part in map(str, fault["loc"]) if not part.startswith(_INTERNAL)]
    key = ".".join(path) or "the recipe"
    given = _short.repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key `{key}`; {_hint(path, root)}"
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    if fault["type"] == "model_type":
        return f"`{key}` should be a mapping of keys, not {given}"
    if fault["type"] == "value_error":
        return f"`{key}`: {fault['ctx']['error']}" if path else str(fault["ctx"]["error"])
    if fault["type"] in _OUT_OF_RANGE:
        return f"`{key}`: should be {range_of(path, root)}, not {given}"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"`{key}`: {message}, not {given}"


def range_of(path: Sequence[str], root: type[BaseModel]) -> str:
    """What a number may be, such as "above 0 and at most 1", by the types on the way to it."""
    names = [part for part in path if not part.isdigit()]
    fields = [
        model.model_fields[names[-1]] for model in _models_at(names[:-1], root) if names[-1] in model.model_fields
    ]
    found = {
        f"{words} {getattr(limit, name):g}": None
        for field in fields
        for limit in _limits(field)
        for name, words in _BOUNDS.items()
        if hasattr(limit, name)
    }
    return " and ".join(found)


def _limits(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    yield from _annotations(field.annotation)


def _annotations(kind: Any) -> Iterator[Any]:
    """Of a type what `Annotated` says about it and its parts."""
    for part in (*getattr(kind, "__metadata__", ()), *get_args(kind)):
        yield from part.metadata if isinstance(part, FieldInfo) else _annotations(part)
        yield part


def _hint(path: Sequence[str], root: type[BaseModel]) -> str:
    known = sorted({name for model in _models_at(path[:-1], root) for name in model.model_fields})
    typed = path[-1].lower().replace("-", "_").strip()
    close = [typed] if typed in known else difflib.get_close_matches(typed, known, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"


def _models_at(path: Sequence[str], root: type[BaseModel]) -> list[type[BaseModel]]:
    """The records that may stand where `path` ends."""
    models = [root]
    for part in path:
        inner = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if inner:
            models = [found for annotation in inner for found in _models_in(annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
