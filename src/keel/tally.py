"""Metrics of one iteration, as sums with weights until they are logged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Metrics of one iteration as (sum, weight), so that the cut into micro-batches or processes changes nothing."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    extremes: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: float = 1.0) -> None:
        """Add a sum over `weight` items (tokens, responses, …). Raises ValueError if the weight is negative."""
        if not weight >= 0:
            raise ValueError(f"metric {name} has weight {weight}, which must be ≥ 0")
        old_total, old_weight = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (old_total + float(total), old_weight + float(weight))

    def extreme(self, name: str, value: float) -> None:
        """Keep the largest value; a NaN is kept for good."""
        value, old = float(value), self.extremes.get(name, -math.inf)
        self.extremes[name] = value if value > old or math.isnan(value) else old

    def merge(self, other: Tally) -> None:
        """Take in another tally, as if its items had been added here."""
        for name, (total, weight) in other.sums.items():
            self.add(name, total, weight)
        for name, value in other.extremes.items():
            self.extreme(name, value)

    def means(self) -> dict[str, float]:
        """Sum over weight of every added metric (NaN where the weight is 0), and every extreme.

        Raises ValueError if a name is used for both.
        """
        both = self.sums.keys() & self.extremes.keys()
        if both:
            raise ValueError(f"metric {min(both)} is both a mean and an extreme")
        means = {name: total / weight if weight else math.nan for name, (total, weight) in self.sums.items()}
        return means | self.extremes
