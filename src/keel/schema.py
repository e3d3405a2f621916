"""The records that lie on disk: prompts, demonstrations and comparisons. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: `role` is system, user, assistant or tool."""

    role: str
    content: str


# Columns of comparisons that Keel collected: did the response end (or was it cut off), how likely was the label.
CHOSEN_ENDED, REJECTED_ENDED, FIRST_PROBABILITY = "chosen_ended", "rejected_ended", "first_probability"

Dialogue = str | tuple[Message, ...]
"""Plain text, or chat messages."""


class Record(Protocol):
    """Anything that can be written as one JSON object a line."""

    def to_row(self) -> dict[str, Any]: ...


def _extra() -> Any:
    """The other columns of the row. Left out of the hash, for a dict has none."""
    return field(default_factory=dict, hash=False)


def _row(fields: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are set, then the extra columns beside them; JSON-ready."""
    row = {name: _plain(value) for name, value in fields.items() if value is not None}
    return row | dict(extra)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [{"role": message.role, "content": message.content} for message in value]
    return value


def _refuse_shadowing(extra: Mapping[str, Any], fields: Iterable[str]) -> None:
    shadowing = sorted(extra.keys() & set(fields))
    if shadowing:
        raise ValueError(f"extra columns bear the name of a field: {shadowing}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to respond to. `extra` holds the row's other columns (a reference answer, …)."""

    prompt: Dialogue
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt",))

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        return _row({"prompt": self.prompt}, self.extra)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the response that is to be imitated."""

    prompt: Dialogue
    response: str
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "response"))

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        return _row({"prompt": self.prompt, "response": self.response}, self.extra)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to one prompt, of which `chosen` was preferred.

    `margin` ≥ 0 is how clearly (Δ = r_chosen − r_rejected − margin); `weight` > 0 multiplies the pair's loss.
    """

    prompt: Dialogue
    chosen: str
    rejected: str
    margin: float | None = None
    annotator: str | None = None
    weight: float = 1.0
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "chosen", "rejected", "margin", "annotator", "weight"))

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record, without a margin, annotator or weight that it has not."""
        fields = {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "margin": self.margin,
            "annotator": self.annotator,
            "weight": self.weight if self.weight != 1.0 else None,
        }
        return _row(fields, self.extra)
