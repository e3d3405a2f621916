"""Numbers as words, as every page and message says them."""

from __future__ import annotations

import math
from typing import Any


def known(value: Any) -> float | None:
    """A finite number, else None."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


def number(value: float, digits: int = 2) -> str:
    """1.234 → 1.23, -1.234 → −1.23."""
    text = f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
    return zero if text == f"-{zero}" else text.replace("-", "−")


def percent(value: float, digits: int = 0) -> str:
    """0.873 → 87%."""
    return f"{number(100 * value, digits)}%"


def sentence(words: str) -> str:
    """ "its recipe is empty" → "Its recipe is empty."."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."
