"""Recovered rewards, best-of-n and the frontier: by hand, and misses where something is broken."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

import pytest
import torch
from torch import Tensor

from keel.functional.preference import bradley_terry_loss, plackett_luce_loss
from keel.verify import exact, frontier_checks, preferences
from keel.verify.frontier_checks import best_of_n_probs, best_score
from keel.verify.result import Finding
from keel.verify.worlds import bandit
from tests.verify.small import two_responses


def missed(finding: Finding) -> set[str]:
    return {bound.what for bound in finding.bounds if not bound.holds}


def test_bradley_terry_recovers_a_reward_that_smoothing_shrinks() -> None:
    assert preferences.recovery_error(bandit(), bradley_terry_loss) < 1e-8
    assert preferences.recovery_error(bandit(), partial(bradley_terry_loss, label_smoothing=0.1)) > 0.1
    assert preferences.recovery_error(bandit(), bradley_terry_loss, flips=0.1) > 0.1


def test_what_is_learnt_from_a_difference_of_two() -> None:
    smoothed = partial(bradley_terry_loss, label_smoothing=0.1)
    assert preferences.learnt_difference(2.0, smoothed) == pytest.approx(1.0653, abs=1e-4)
    assert preferences.learnt_difference(2.0, bradley_terry_loss) == pytest.approx(1.4155, abs=1e-4)


def test_rankings_by_drawing_without_replacement() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0]).double()
    assert float(preferences.ranking_probability(scores)) == pytest.approx(math.exp(-0.720868), abs=1e-6)
    orders = torch.tensor(list(permutations(range(3))))
    assert float(preferences.ranking_probability(scores[orders]).sum()) == pytest.approx(1.0)


def test_rankings_read_worst_first_recover_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 5, 6], [5, 6, 7]])
    assert preferences.ranking_error(bandit(), sets) < 1e-6

    def worst_first(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
        return plackett_luce_loss(scores, -ranks, mask)

    monkeypatch.setattr(preferences, "plackett_luce_loss", worst_first)
    assert preferences.ranking_error(bandit(), sets) > 0.1


def test_best_of_two_responses_by_hand() -> None:
    torch.testing.assert_close(best_of_n_probs(two_responses((0.3, 0.7)), 2), torch.tensor([[0.09, 0.91]]).double())


def test_best_of_n_check_holds_and_misses_with_a_law_of_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missed(frontier_checks.best_of_n()) == set()
    right = frontier_checks.best_of_n_probs
    monkeypatch.setattr(frontier_checks, "best_of_n_probs", lambda world, n: right(world, n + 1))
    names = missed(frontier_checks.best_of_n())
    assert {name.split(",")[0] for name in names} == {
        "law less all draws",
        "score less best_of_n_score of all draws of 4",
        "KL / bound",
    }


def test_the_frontier_of_two_responses() -> None:
    """The optimum at beta 1/2 has KL .603052 and score 2.964028; every p(2) lies on or below the frontier."""
    assert best_score(two_responses(), 0.603052) == pytest.approx(2.964028, abs=1e-6)
    for p in (0.1, 0.4, 0.5, 0.7, 0.9):
        distance = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
        below = best_score(two_responses(), distance) - (1 + 2 * p)
        assert below == pytest.approx(0, abs=1e-5) if p >= 0.5 else below > 0.1


def test_the_frontier_check_holds_on_bandits_and_misses_for_other_optima(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_checks, "_RANDOM", 2)
    monkeypatch.setattr(frontier_checks, "_trained", lambda world: [frontier_checks.best_of_n_probs(world, 3)])
    monkeypatch.setattr(frontier_checks, "sequences", lambda _: bandit())
    assert missed(frontier_checks.on_the_frontier()) == set()
    monkeypatch.setattr(frontier_checks, "frontier", lambda scores, kl: _Low(float(scores.mean()) + kl))
    monkeypatch.setattr(frontier_checks, "best_score", lambda world, kl: float(exact.optimal_value(world, 0.5).mean()))
    names = missed(frontier_checks.on_the_frontier())
    assert {"π* off the frontier, even bandit", "π* off the frontier, structured"} <= names
    assert {"best-of-n: least below it, structured", "best-of-n: least below it, even bandit"} & names


class _Low:
    """A frontier point that is too low."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
