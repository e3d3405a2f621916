"""A held-out score against its peak: by hand, and by runs in which it never falls, or falls by a known amount."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.instruments.alarms import alarms
from keel.instruments.peaks import FALSE_ALARMS, Peak, least_fall

PROMPTS = 128


def test_the_peak_is_the_first_of_the_highest_evaluations() -> None:
    peak = Peak(0, (1.0, 2.0))
    assert peak.or_higher(4, [2.0, 1.0]) is peak
    assert peak.or_higher(4, [1.0, 2.5]) == Peak(4, (1.0, 2.5))


def test_the_error_of_a_fall_is_that_of_paired_differences_about_0() -> None:
    # differences 1, −2, 0, 3: the squares' sum is 14, and their mean 0.5 = (14 + 2·(…)) plays no part
    assert Peak(0, (5.0, 5.0, 5.0, 5.0)).fall_error([4.0, 7.0, 5.0, 2.0]) == pytest.approx(math.sqrt(14) / 4)
    alike = Peak(0, tuple(np.linspace(-9, 9, 100).tolist()))
    assert alike.fall_error(alike.values) == 0.0
    everywhere = alike.fall_error([value - 0.01 for value in alike.values])  # however far apart the prompts are
    assert 0.01 / everywhere == pytest.approx(10)  # sqrt(n), the most that there is
    with pytest.raises(ValueError, match="zip"):
        alike.fall_error([1.0])


def test_the_shares_of_all_pairs_of_evaluations_add_up_to_the_chance_of_a_false_alarm() -> None:
    spent = [earlier * math.erfc(least_fall(earlier) / math.sqrt(2)) / 2 for earlier in range(1, 2001)]
    assert spent[0] == pytest.approx(FALSE_ALARMS / 2)
    assert sum(spent) == pytest.approx(FALSE_ALARMS * (1 - 1 / 2001))


def runs_with_an_alarm(evaluations: int, shared: float, fall: float, *, runs: int, after: int) -> int:
    """Of runs whose score rises and whose held-out score is flat, or lies `fall` lower from the third evaluation on.

    In units of a response's standard deviation; `shared` of its variance is the prompt's, the same at every evaluation.
    """
    generator = np.random.default_rng(0)
    alarmed = 0
    for _ in range(runs):
        prompts, draws = generator.standard_normal((1, PROMPTS)), generator.standard_normal((evaluations, PROMPTS))
        values = math.sqrt(shared) * prompts + math.sqrt(1 - shared) * draws
        values[2:] -= fall
        peak, rows = Peak(0, tuple(values[0].tolist())), []
        for number, row in enumerate(values.tolist()):
            peak = peak.or_higher(number, row)
            measured = {"": math.fsum(row) / PROMPTS, "/peak": peak.iteration, "/fall_error": peak.fall_error(row)}
            found = {f"eval/judge{name}": float(value) for name, value in measured.items()}
            rows.append({"iteration": number, "eval/scores": number, **found})
        alarmed += bool(alarms(rows, after))
    return alarmed


@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize(("evaluations", "runs", "most"), [(5, 1000, 21), (11, 1000, 21), (50, 200, 8)])
def test_a_run_that_never_falls_raises_no_alarm(evaluations: int, runs: int, most: int, shared: float) -> None:
    """One in a hundred may, at its first evaluation out of range: `most` is the binomial law's 99.9 %."""
    assert runs_with_an_alarm(evaluations, shared, 0.0, runs=runs, after=1) <= most
    assert runs_with_an_alarm(evaluations, shared, 0.0, runs=runs, after=2) == 0


@pytest.mark.parametrize(("shared", "fall"), [(0.0, 0.8), (0.5, 0.6), (0.9, 0.3)])
def test_a_run_that_falls_is_found(shared: float, fall: float) -> None:
    """The more of a response's variance is its prompt's, the smaller the fall that is seen."""
    assert runs_with_an_alarm(11, shared, fall, runs=50, after=2) >= 48
