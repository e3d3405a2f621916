"""The peak of a held-out score, response by response: what every later evaluation of the same prompts is held against.

The evaluations share prompts and random numbers, so what one prompt adds to a score cancels in the difference of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

FALSE_ALARMS = 0.01  # chance that a run whose held-out score never falls is said to fall, at whatever length


@dataclass(frozen=True)
class Peak:
    """The evaluation with the highest mean so far, the first of equal ones."""

    iteration: int
    values: tuple[float, ...]  # one a held-out prompt

    def or_higher(self, iteration: int, values: Sequence[float]) -> Peak:
        """The peak once another evaluation of as many prompts is in."""
        return Peak(iteration, tuple(values)) if math.fsum(values) > math.fsum(self.values) else self

    def fall_error(self, values: Sequence[float]) -> float:
        """Standard error of the mean fall from here to `values`, were nothing changed: sqrt(sum of squares) / n.

        About 0, not about their mean, so that the fall in such errors never exceeds sqrt(n) and has Gaussian tails for
        few responses and for long-tailed scores alike, as long as a fall is as likely as an equal rise (Efron, 1969,
        "Student's t-test under symmetry conditions"). ValueError where there are more or fewer values.
        """
        falls = [peak - now for peak, now in zip(self.values, values, strict=True)]
        return math.sqrt(math.fsum(fall * fall for fall in falls)) / len(falls)


def least_fall(earlier: int) -> float:
    """How many standard errors an evaluation must lie below the peak of the `earlier` ones before it to have fallen.

    The peak may be any of them, and is one that was lucky. By Bonferroni's bound over all pairs of evaluations the
    chance of one false finding in a run is at most FALSE_ALARMS: with m = `earlier` this evaluation has 1 / (m (m + 1))
    of it, and each of its m pairs an equal part; the shares of all m add up to 1.
    """
    return -NormalDist().inv_cdf(FALSE_ALARMS / (earlier * earlier * (earlier + 1)))
