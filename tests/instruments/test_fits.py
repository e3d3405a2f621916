"""The two laws of over-optimisation: planted coefficients come back, and the peak is where a fine grid has it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.instruments.fits import Fit, Law, fit, held_out_fits, path

DISTANCES = [0.0, 0.3, 1.1, 2.0, 3.5, 6.0, 9.0]
PLANTED = [("linear", 1.7, 0.31), ("linear", -0.4, 0.2), ("log", 2.1, 0.9), ("log", 0.5, -0.3)]


def by_hand(law: Law, alpha: float, beta: float, d: float) -> float:
    if d == 0:
        return 0.0
    return alpha * d - beta * d * d if law == "linear" else alpha * d - beta * d * math.log(d)


@pytest.mark.parametrize(("law", "alpha", "beta"), PLANTED)
def test_planted_coefficients_come_back(law: Law, alpha: float, beta: float) -> None:
    found = fit(law, DISTANCES, [by_hand(law, alpha, beta, d) for d in DISTANCES])
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-9)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert [found.gain(d) for d in DISTANCES] == pytest.approx([by_hand(law, alpha, beta, d) for d in DISTANCES])


def test_noisy_points_are_fitted_as_the_normal_equations_have_it() -> None:
    d = np.array(DISTANCES[1:])
    gains = 1.2 * d - 0.2 * d * d + np.array([0.1, -0.2, 0.05, 0.3, -0.1, -0.15])
    # [Σd² −Σd³; −Σd³ Σd⁴] (α, β) = (Σ d R, −Σ d² R), solved by Cramer's rule
    a, b, c = (d**2).sum(), -(d**3).sum(), (d**4).sum()
    p, q = (d * gains).sum(), -(d**2 * gains).sum()
    alpha, beta = (p * c - b * q) / (a * c - b * b), (a * q - b * p) / (a * c - b * b)
    found = fit("linear", [0.0, *d.tolist()], [5.0, *gains.tolist()])  # the point at 0 says nothing
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta))
    left = gains - (alpha * d - beta * d * d)
    assert found.error == pytest.approx(math.sqrt((left**2).mean()))


@pytest.mark.parametrize(("law", "alpha", "beta"), [("linear", 1.7, 0.31), ("log", 2.1, 0.9), ("log", -0.2, 0.9)])
def test_the_peak_is_the_highest_of_a_fine_grid(law: Law, alpha: float, beta: float) -> None:
    grid = np.linspace(1e-4, 12, 240_001)
    best = grid[int(np.argmax([by_hand(law, alpha, beta, d) for d in grid.tolist()]))]
    assert Fit(law, alpha, beta, 0.0).peak == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize(("law", "alpha", "beta"), [("linear", 1.0, -0.1), ("linear", -1.0, 0.1), ("log", 1.0, -0.1)])
def test_what_never_bends_down_has_no_peak(law: Law, alpha: float, beta: float) -> None:
    assert Fit(law, alpha, beta, 0.0).peak is None


def test_two_points_are_too_few() -> None:
    assert fit("log", [0.0, 1.0, 2.0], [0.0, 1.0, 1.5]) is None
    with pytest.raises(ValueError, match="3 distances and 2 gains"):
        fit("log", [0.0, 1.0, 2.0], [0.0, 1.0])


def test_the_path_of_a_run_starts_at_its_first_evaluation() -> None:
    rows: list[dict[str, float | None]] = [
        {"iteration": 0, "eval/kl": -1e-6, "eval/utility": 1.5, "eval/judge": 0.5},
        {"iteration": 1, "objective/kl": 1.0},
        {"iteration": 2, "eval/kl": 4.0, "eval/utility": 2.5, "eval/judge": None},
        {"iteration": 4, "eval/kl": 9.0, "eval/utility": 1.0, "eval/judge": math.nan},
    ]
    assert path(rows, "eval/utility") == ([0.0, 2.0, 3.0], [0.0, 1.0, -0.5])
    assert path(rows, "eval/judge") == ([0.0], [0.0])


def test_a_run_is_fitted_by_what_it_measured() -> None:
    rows = [{"eval/kl": d * d, "eval/utility": 3 + by_hand("linear", 1.0, 0.25, d)} for d in DISTANCES]
    found = held_out_fits(rows)
    assert set(found) == {"utility"}
    assert set(found["utility"]) == {"linear", "log"}
    linear = found["utility"]["linear"]
    assert linear == pytest.approx({"alpha": 1.0, "beta": 0.25, "error": 0.0, "peak_kl": 4.0}, abs=1e-9)
    assert found["utility"]["log"]["error"] > 0.1
    assert held_out_fits(rows[:3]) == {}


@pytest.mark.parametrize(
    ("law", "alpha", "beta"), [("log", 1.0, 1e-3), ("log", 1.0, 1e-300), ("linear", 1.0, 1e-9), ("log", 8.0, 1.0)]
)
def test_a_peak_beyond_any_run_is_none(law: Law, alpha: float, beta: float) -> None:
    assert Fit(law, alpha, beta, error=0.0).peak is None
    assert Fit("log", 7.0, 1.0, error=0.0).peak == pytest.approx(math.exp(6.0))  # 403 of the 1,000 that count
