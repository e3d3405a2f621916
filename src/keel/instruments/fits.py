"""How a score that is not optimised goes with the distance from the reference: the two laws of Gao et al. (2023).

With d = √KL (nats a response) and R the score's gain over the reference, R(d) = d (α − β d) for best-of-n and
R(d) = d (α − β log d) for reinforcement learning ("Scaling laws for reward model overoptimization", §3.1). Both are
linear in α and β. They hold between the scores' noise and where the policy has left language behind: read them with
their error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Law = Literal["linear", "log"]
LAWS: dict[Law, str] = {"linear": "d (α − β d)", "log": "d (α − β log d)"}
HELD_OUT = ("eval/utility", "eval/judge")  # what is not trained on
_FARTHEST = 1e3  # √KL: a million nats a response
_LEAST_POINTS = 3  # one more than there are coefficients


@dataclass(frozen=True)
class Fit:
    """One law, fitted."""

    law: Law
    alpha: float
    beta: float
    error: float  # root mean square of what the law leaves unexplained, in units of the score

    def gain(self, distance: float) -> float:
        """R at d = √KL; 0 at 0."""
        if distance == 0:
            return 0.0
        return distance * (self.alpha - self.beta * (distance if self.law == "linear" else math.log(distance)))

    @property
    def peak(self) -> float | None:
        """The d at which R is highest; None where it falls from the start, or rises for as far as any run goes."""
        if self.beta <= 0 or (self.law == "linear" and self.alpha <= 0):
            return None
        if self.law == "linear":
            peak = self.alpha / (2 * self.beta)
        else:
            peak = math.exp(min(self.alpha / self.beta - 1, math.log(_FARTHEST) + 1))
        return peak if peak <= _FARTHEST else None


def fit(law: Law, distances: Sequence[float], gains: Sequence[float]) -> Fit | None:
    """The least-squares α and β from points (d, R), the gains over the first of them, which is d = 0 for a whole run.

    The first says nothing itself, nor do those at d ≤ 0; None where fewer than three are left. ValueError where the
    two are not equally many.
    """
    if len(distances) != len(gains):
        raise ValueError(f"{len(distances)} distances and {len(gains)} gains; one is needed for each")
    points = [(d, r) for d, r in zip(distances[1:], gains[1:], strict=True) if d > 0]
    if len(points) < _LEAST_POINTS:
        return None
    d, r = np.array(points, dtype=np.float64).T
    basis = _basis(law, d) - _basis(law, np.array(distances[:1]))
    (alpha, beta), *_ = np.linalg.lstsq(basis, r, rcond=None)
    error = float(np.sqrt(np.mean((basis @ [alpha, beta] - r) ** 2)))
    return Fit(law, float(alpha), float(beta), error)


def _basis(law: Law, d: Array) -> Array:
    """What α and β are multiplied with, [n, 2]."""
    bent = d if law == "linear" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * bent], axis=1)


def path(rows: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """d = √KL and the gain over the first evaluation, of a held-out metric in the lines of ppo's metrics."""
    found = [(row.get("eval/kl"), row.get(key)) for row in rows]
    points = [(kl, value) for kl, value in found if kl is not None and value is not None and math.isfinite(kl + value)]
    return [math.sqrt(max(kl, 0.0)) for kl, _ in points], [value - points[0][1] for _, value in points]


def held_out_fits(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Both laws for the true utility and for the judge's score, as far as the lines of ppo's metrics have them."""
    found: dict[str, Any] = {}
    for key in HELD_OUT:
        fits = [one for law in LAWS if (one := fit(law, *path(rows, key))) is not None]
        if fits:
            found[key.removeprefix("eval/")] = {one.law: _described(one) for one in fits}
    return found


def _described(one: Fit) -> dict[str, float | None]:
    peak = one.peak
    return {
        "alpha": one.alpha,
        "beta": one.beta,
        "error": one.error,
        "peak_kl": None if peak is None else peak * peak,
    }
