"""The plain values of a row (numbers, yes or no, names), from JSON or from the text of a table's cell."""

from __future__ import annotations

import math
from typing import Any, get_args

from keel.config.data import Outcome
from keel.data.reasons import Reason, Unusable

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def margin(value: Any) -> float | None:
    if _is_empty(value):
        return None
    found = _number(value)
    if found is None or found < 0:
        raise Unusable(Reason.WRONG_TYPE, f"margin is {value!r}, not a number of 0 or more")
    return found


def weight(value: Any) -> float:
    if _is_empty(value):
        return 1.0
    found = _number(value)
    if found is None or found <= 0:
        raise Unusable(Reason.WRONG_TYPE, f"weight is {value!r}, not a number above 0")
    return found


def annotator(value: Any) -> str | None:
    if _is_empty(value):
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Unusable(Reason.WRONG_TYPE, f"annotator is {value!r}, neither text nor a whole number")
    return str(value)


def rating(value: Any, scale: tuple[float, float] | None) -> float:
    found = _number(value)
    if found is None:
        raise Unusable(Reason.WRONG_TYPE, f"rating is {value!r}, not a number")
    if scale is not None and not scale[0] <= found <= scale[1]:
        raise Unusable(Reason.WRONG_TYPE, f"rating is {value!r}, off its scale from {scale[0]:g} to {scale[1]:g}")
    return found


def scale(value: Any) -> tuple[float, float] | None:
    if _is_empty(value):
        return None
    ends = [_number(end) for end in value] if isinstance(value, list) else []
    match ends:
        case [float(lowest), float(highest)] if lowest < highest:
            return lowest, highest
    raise Unusable(Reason.WRONG_TYPE, f"scale is {value!r}, not [lowest, highest]")


def ranks(value: Any, count: int) -> list[int]:
    """One whole number a response."""
    found = [_number(rank) for rank in value] if isinstance(value, list) else []
    whole = [int(rank) for rank in found if rank is not None and rank.is_integer()]
    if len(whole) != count or len(found) != count:
        raise Unusable(Reason.WRONG_TYPE, f"ranks is {value!r}, not a list of {count} whole numbers")
    return whole


def outcomes(value: Any, count: int) -> list[Outcome]:
    """One word a pair of responses."""
    known: tuple[Outcome, ...] = get_args(Outcome)
    found = [word for each in value for word in known if word == each] if isinstance(value, list) else []
    if len(found) != count or len(value) != count:
        raise Unusable(Reason.WRONG_TYPE, f"preferred is {value!r}, not a list of {count} of {', '.join(known)}")
    return found


def accepted(value: Any) -> bool:
    found = _TRUTHS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise Unusable(Reason.WRONG_TYPE, f"accepted is {value!r}, neither true nor false")
    return found


def _is_empty(value: Any) -> bool:
    """Null, or the empty cell that a table has for it."""
    return value is None or value == ""


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else (true and false are none)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
