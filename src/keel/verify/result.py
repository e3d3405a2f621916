"""What a check measures, and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from keel.report.figures import Panel


class Level(IntEnum):
    """The shortest run of `keel verify` that has the check; the longer ones have it too."""

    QUICK = 0
    DEFAULT = 1
    FULL = 2


class Group(StrEnum):
    """What the checks of one table have in common; its value is the table's title, in the page's order."""

    OPTIMUM = "The optimum is reached"
    DIRECT = "Direct methods and the constraint"
    ELSEWHERE = "Those that aim elsewhere arrive there"
    ESTIMATORS = "Estimators, by enumeration"
    PREFERENCES = "Preferences, best-of-n and the frontier"
    TRANSFORMER = "A real transformer"


@dataclass(frozen=True)
class Bound:
    """A measured number and the range it must lie in, ends included. NaN lies in none."""

    what: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Table:
    """Numbers beside a check that bind nothing; the first column is text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """What a check returns. It has passed when all bounds hold; there is at least one."""

    bounds: tuple[Bound, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)  # measured besides, for verify.json
    tables: tuple[Table, ...] = ()
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True)
class Check:
    """A claim and how it is measured. `measure` is a function of a module, or a partial of one: it is pickled."""

    name: str
    group: Group
    claim: str  # one sentence
    level: Level
    measure: Callable[[], Finding]


@dataclass(frozen=True)
class Result:
    """A check that was run: its finding, or the error that ended it."""

    name: str
    group: Group
    claim: str
    level: Level
    seconds: float
    finding: Finding | None
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.finding is not None and all(bound.holds for bound in self.finding.bounds)

    @property
    def missed(self) -> list[Bound]:
        """The bounds that do not hold."""
        return [bound for bound in self.finding.bounds if not bound.holds] if self.finding else []
