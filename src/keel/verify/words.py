"""Results as words, for the terminal and the page."""

from __future__ import annotations

import math

from keel.verify.result import Bound, Result


def measured(result: Result) -> list[str]:
    """A line a bound: what was measured, and what it is held to; the error where there is no finding."""
    return [bound_line(bound) for bound in result.finding.bounds] if result.finding else [result.error]


def bound_line(bound: Bound) -> str:
    """mean gap 3.1e-05 ≤ 0.002"""
    value = f"{bound.what} {bound.value:.3g}"
    if math.isinf(bound.low):
        return f"{value} ≤ {bound.high:g}"
    if math.isinf(bound.high):
        return f"{value} ≥ {bound.low:g}"
    return f"{value} in [{bound.low:.4g}, {bound.high:.4g}]"
