"""What a stage's models say, ready for a page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from keel.feedback.watch.formats import format_number
from keel.feedback.watch.stage import LiveStage, number

SHOWN = 16  # samples of one iteration on a page
_STEPS = (0.05, 0.25, 0.5, 1.0, 2.0)  # nats: where the paint of a token grows stronger
_TEXTS = ("response", "chosen", "rejected", "policy", "reference")
_NUMBERS = (("score", "score"), ("kl", "KL"), ("utility_gap", "gap in utility"))
_PREFIXED = (("score", "score"), ("utility", "true"))


@dataclass(frozen=True)
class Piece:
    """A token's text and how strongly it is painted: 0 not at all, ±1 … ±5 by its KL."""

    text: str
    paint: int
    said: str  # its KL in words


@dataclass(frozen=True)
class Text:
    """One of a sample's texts; its `pieces` where the KL of its tokens is known."""

    label: str
    text: str
    note: str
    pieces: tuple[Piece, ...] = ()
    rest: bool = False  # whether there are more tokens than pieces


@dataclass(frozen=True)
class SampleView:
    """A prompt and what was said to it; `other` is a row that is of no known kind, as it stands."""

    prompt: str
    texts: tuple[Text, ...]
    note: str
    other: str = ""


def iterations(stage: LiveStage) -> list[int]:
    """Those that have samples in memory, ascending."""
    return sorted({_iteration(row) for row in stage.samples})


def of_iteration(stage: LiveStage, iteration: int) -> list[SampleView]:
    """The first samples of an iteration."""
    rows = [row for row in stage.samples if _iteration(row) == iteration]
    return [_view(row) for row in rows[:SHOWN]]


def _iteration(row: dict[str, Any]) -> int:
    value = number(row.get("iteration"))
    return int(value) if value is not None and math.isfinite(value) else -1


def _view(row: dict[str, Any]) -> SampleView:
    texts = [_text(row, key) for key in _TEXTS if isinstance(row.get(key), str)] + _responses(row)
    if not texts:
        return SampleView("", (), "", other=json.dumps(row, ensure_ascii=False, indent=1))
    ended = ["cut at the limit"] if row.get("ended") is False else []
    note = ", ".join([*_numbers(row, "", _NUMBERS), *ended])
    prompt = row.get("prompt")
    return SampleView(prompt if isinstance(prompt, str) else json.dumps(prompt), tuple(texts), note)


def _responses(row: dict[str, Any]) -> list[Text]:
    """Those that people are to compare."""
    said = row.get("responses")
    texts = [text for text in said if isinstance(text, str)] if isinstance(said, list) else []
    return [Text(f"response {place}", text, "") for place, text in enumerate(texts, start=1)]


def _text(row: dict[str, Any], key: str) -> Text:
    text = Text(key, row[key], ", ".join(_numbers(row, f"{key}_", _PREFIXED)))
    tokens, kl = row.get("tokens"), row.get("token_kl")
    if key != "response" or not isinstance(tokens, list) or not isinstance(kl, list) or len(tokens) != len(kl):
        return text
    pieces = tuple(_piece(str(token), number(value)) for token, value in zip(tokens, kl, strict=True))
    length = number(row.get("length"))
    return Text(key, text.text, text.note, pieces, rest=length is not None and length > len(pieces))


def _piece(token: str, kl: float | None) -> Piece:
    if kl is None or not math.isfinite(kl):
        return Piece(token, 0, "not known")
    strength = sum(abs(kl) >= step for step in _STEPS)
    return Piece(token, strength if kl > 0 else -strength, f"{format_number(kl)} nats")


def _numbers(row: dict[str, Any], prefix: str, named: tuple[tuple[str, str], ...]) -> list[str]:
    found = [(label, number(row.get(prefix + key))) for key, label in named]
    return [f"{label} {format_number(value)}" for label, value in found if value is not None and math.isfinite(value)]
