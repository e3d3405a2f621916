"""The records that lie on disk: prompts, demonstrations, comparisons, rankings, ratings and labels. No torch."""

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
CHOSEN_FIRST = "chosen_first"  # whether the chosen response stood before the rejected one, where there was an order

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
        return [_plain(item) for item in value]
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
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
    """A prompt and the response that is to be imitated. Without a prompt (an empty one) the response is plain text."""

    prompt: Dialogue
    response: str
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "response") if self.prompt else ("prompt", "response", "text"))

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        fields = {"prompt": self.prompt, "response": self.response} if self.prompt else {"text": self.response}
        return _row(fields, self.extra)


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

    @property
    def first_probability(self) -> float | None:
        """How likely the label was, where the row says so."""
        known = self.extra.get(FIRST_PROBABILITY)
        return float(known) if isinstance(known, float | int) and not isinstance(known, bool) else None

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


@dataclass(frozen=True, slots=True)
class Ranking:
    """Two or more responses to one prompt in order of preference: `ranks[k]` is that of `responses[k]`.

    A lower rank is better, and equal ranks are a tie.
    """

    prompt: Dialogue
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    annotator: str | None = None
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "responses", "ranks", "annotator"))
        if len(self.responses) < 2 or len(self.responses) != len(self.ranks):
            raise ValueError(f"{len(self.responses)} responses with {len(self.ranks)} ranks")

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        fields = {
            "prompt": self.prompt,
            "responses": self.responses,
            "ranks": self.ranks,
            "annotator": self.annotator,
        }
        return _row(fields, self.extra)


@dataclass(frozen=True, slots=True)
class Rating:
    """A response and the number it was given; `scale` is (lowest, highest) where it is known."""

    prompt: Dialogue
    response: str
    rating: float
    scale: tuple[float, float] | None = None
    annotator: str | None = None
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "response", "rating", "scale", "annotator"))
        if self.scale is not None and not self.scale[0] <= self.rating <= self.scale[1]:
            raise ValueError(f"a rating of {self.rating} on a scale from {self.scale[0]} to {self.scale[1]}")

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        fields = {
            "prompt": self.prompt,
            "response": self.response,
            "rating": self.rating,
            "scale": self.scale,
            "annotator": self.annotator,
        }
        return _row(fields, self.extra)


@dataclass(frozen=True, slots=True)
class Label:
    """A response that was accepted, or was not."""

    prompt: Dialogue
    response: str
    accepted: bool
    annotator: str | None = None
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        _refuse_shadowing(self.extra, ("prompt", "response", "accepted", "annotator"))

    def to_row(self) -> dict[str, Any]:
        """The JSON object that reads back as this record."""
        fields = {
            "prompt": self.prompt,
            "response": self.response,
            "accepted": self.accepted,
            "annotator": self.annotator,
        }
        return _row(fields, self.extra)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A prompt and what a policy said to it, not yet judged: responses, and whether each ended by itself."""

    prompt: Dialogue
    responses: tuple[str, ...]
    ended: tuple[bool, ...]


Feedback = Comparison | Ranking | Rating | Label
"""What was said of one response or several: what a reward model learns from."""

AnyRecord = Prompt | Demonstration | Feedback
