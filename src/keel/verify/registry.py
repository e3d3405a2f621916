"""Every check there is: one line a module."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from keel.errors import UserError
from keel.verify import (
    biases,
    constraint_checks,
    direct_checks,
    elsewhere,
    estimators,
    exact_checks,
    frontier_checks,
    preferences,
    sampled_checks,
    transformer_checks,
    variances,
)
from keel.verify.result import Check, Level

CHECKS: tuple[Check, ...] = (
    *exact_checks.CHECKS,
    *sampled_checks.CHECKS,
    *direct_checks.CHECKS,
    *estimators.CHECKS,
    *biases.CHECKS,
    *variances.CHECKS,
    *preferences.CHECKS,
    *frontier_checks.CHECKS,
    *constraint_checks.CHECKS,
    *elsewhere.CHECKS,
    *transformer_checks.CHECKS,
)


def of_level(level: Level) -> list[Check]:
    """The checks of a run of that length."""
    return [check for check in CHECKS if check.level <= level]


def named(patterns: Sequence[str]) -> list[Check]:
    """The checks of any level whose names fit one of the patterns (`*` for anything).

    Raises UserError for a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(check.name, pattern) for check in CHECKS):
            names = [check.name for check in CHECKS]
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}."
            raise UserError(f"--only {pattern} fits no check; {hint}")
    return [check for check in CHECKS if any(fnmatchcase(check.name, pattern) for pattern in patterns)]
