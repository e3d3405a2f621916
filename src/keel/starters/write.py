"""A plan as YAML text: every key with its reason beside it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from keel.starters.plan import Key

SCHEMA_FILE = "recipe.schema.json"
_COMMENT_AT = 48  # column of the reasons
_WIDTH = 10_000  # no value is broken over lines


def recipe_text(keys: Sequence[Key], file: str) -> str:
    """The recipe as it lies in `file`."""
    head = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        "#",
        f"#   keel doctor {file}     does everything it names exist?",
        f"#   keel run {file}        walk it; the same command goes on after an interruption",
    ]
    return "\n".join([*head, *_lines(keys, 0)]) + "\n"


def _lines(keys: Iterable[Key], depth: int) -> Iterator[str]:
    for key in keys:
        if isinstance(key.value, tuple):
            yield _commented(f"{'  ' * depth}{key.name}:", key.why)
            yield from _lines(key.value, depth + 1)
        else:
            yield _commented(f"{'  ' * depth}{key.name}: {_value(key.value)}", key.why)


def _commented(line: str, why: str) -> str:
    return f"{line:<{_COMMENT_AT}}  # {why}" if why else line


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=_WIDTH, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
