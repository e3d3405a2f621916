"""The protocol of a panel: people who are asked about pairs, answer when they like, and may call two equal.

This is no `Annotator`, which answers at once and always names a winner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keel.schema import Sampled


@dataclass(frozen=True)
class Opinion:
    """What one person said of one pair."""

    question: int  # by its place among those that were published
    annotator: str
    best: int | None  # which of the two responses; None: neither is better
    shown_first: int  # which of them stood first
    strength: str  # clear or slight; tie or both_bad where neither is better
    seconds: float


@dataclass(frozen=True)
class Standing:
    """How far the people are."""

    questions: int
    complete: int  # have all the votes that they want
    votes: int
    wanted: int
    by: Mapping[str, int]  # votes of each person, most first
    open: bool = True  # whether the rest is still given to people


class Away(Exception):
    """The panel cannot be reached just now; it is worth asking again."""


class Panel(Protocol):
    """Where people are asked."""

    @property
    def columns(self) -> Mapping[str, Any]:
        """What else each answer carries: its round, the policy's version."""
        ...

    @property
    def where(self) -> str:
        """How they get there: a sentence for whoever started the run."""
        ...

    def publish(self, questions: Sequence[Sampled]) -> int:
        """Ask which of two responses is better; returns how many questions are new, for none is asked twice."""
        ...

    def standing(self) -> Standing:
        """Of what was published. Raises Away."""
        ...

    def opinions(self) -> list[Opinion]:
        """The answers to what was published that stand, by question, then in the order they were given. Raises Away."""
        ...
