"""What a stage tells the person who waits; the command line implements it with a live display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Console(Protocol):
    """Three things to say."""

    def say(self, text: str) -> None:
        """One sentence that stays on the screen."""
        ...

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """How far a stage is, with the few numbers that matter."""
        ...

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        """A few responses as they come: `prompt`, `response`, and numbers beside them."""
        ...


class SilentConsole:
    """Says nothing: for library use and tests."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Nothing."""

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        """Nothing."""
