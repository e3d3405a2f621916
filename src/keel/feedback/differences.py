"""Where two texts differ, word by word, in bounded time."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from difflib import SequenceMatcher

MOST_COMPARED = 1_500_000
"""Words of one text times words of the other; beyond it a stretch is marked as a whole."""
_LONGEST = 200_000  # characters
_PIECE = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]*\s*")
_WORD = re.compile(r"(?:[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s])\s*|\s+")
Spans = tuple[tuple[int, int], tuple[int, int]]


def marked(one: str, other: str) -> tuple[str, str]:
    """Both texts as HTML, with <mark> around what the other has not."""
    spans = list(_differing(one, other))
    return _marked(one, [first for first, _ in spans]), _marked(other, [second for _, second in spans])


def _differing(one: str, other: str) -> Iterator[Spans]:
    """Stretches (start, end) of the one and the other text: sentences first, then the words of those that differ."""
    if max(len(one), len(other)) > _LONGEST:
        yield (0, len(one)), (0, len(other))
        return
    for first, second in _replaced(_PIECE, one, other, (0, len(one)), (0, len(other))):
        yield from _replaced(_WORD, one, other, first, second)


def _replaced(
    part: re.Pattern[str], one: str, other: str, first: tuple[int, int], second: tuple[int, int]
) -> Iterator[Spans]:
    """Where two stretches differ, when both are cut into pieces by `part`."""
    parts = [list(part.finditer(text, *stretch)) for text, stretch in ((one, first), (other, second))]
    if len(parts[0]) * len(parts[1]) > MOST_COMPARED:
        yield first, second
        return
    starts = [
        [*(found.start() for found in side), stretch[1]] for side, stretch in zip(parts, (first, second), strict=True)
    ]
    words = [[found[0].strip() for found in side] for side in parts]
    for same, a, b, c, d in SequenceMatcher(None, words[0], words[1]).get_opcodes():
        if same != "equal":
            yield (starts[0][a], starts[0][b]), (starts[1][c], starts[1][d])


def _marked(text: str, spans: list[tuple[int, int]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end in spans:
        words = text[start:end].rstrip()
        pieces += [html.escape(text[at:start]), f"<mark>{html.escape(words)}</mark>" if words else ""]
        at = start + len(words)
    return "".join([*pieces, html.escape(text[at:])])
