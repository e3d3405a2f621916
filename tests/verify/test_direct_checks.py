"""Direct methods on two responses by hand, and checks that miss where a label is turned round."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from keel.functional.direct import dpo_loss, ipo_loss
from keel.verify import direct_checks
from keel.verify.direct_checks import ipo_optimum, labelled, trained
from keel.verify.fitting import all_labels, curvature, expected_loss, minimise
from keel.verify.result import Finding
from keel.verify.worlds import World, bandit
from tests.verify.small import two_responses


def test_dpo_on_two_responses_reaches_the_optimum_of_the_documents() -> None:
    world = two_responses()
    reached = trained(world, labelled(world), partial(dpo_loss, beta=0.5), 0.5)
    assert reached.exp().flatten().tolist() == pytest.approx([0.0179862, 0.9820138], abs=1e-7)


def test_smoothed_dpo_on_two_responses_ends_where_a_tenth_of_the_labels_is_flipped() -> None:
    world = two_responses()
    reached = trained(world, labelled(world), partial(dpo_loss, beta=0.5, label_smoothing=0.1), 0.5)
    win = 1 / (1 + math.exp(-2))
    said = 0.9 * win + 0.1 * (1 - win)
    assert float(reached[0, 1] - reached[0, 0]) == pytest.approx(math.log(said / (1 - said)) / 0.5, abs=1e-8)


@pytest.mark.parametrize("ref", [(0.5, 0.5), (0.2, 0.8)])
def test_ipo_on_two_responses_by_hand(ref: tuple[float, float]) -> None:
    """Log-odds over the reference's: (P(2 beats 1) - 1/2) / beta, whatever the reference."""
    world = two_responses(ref)
    odds = (1 / (1 + math.exp(-2)) - 0.5) / 0.1 + math.log(ref[1] / ref[0])
    reached = trained(world, labelled(world), partial(ipo_loss, beta=0.1), 0.1)
    for logprobs in (reached, ipo_optimum(world, 0.1)):
        assert float(logprobs[0, 1] - logprobs[0, 0]) == pytest.approx(odds, abs=1e-6)


def test_labels_of_a_distribution() -> None:
    """From (0.2, 0.8) one pair, asked about 2 x 0.2 x 0.8 of the time; a tenth of its labels is flipped."""
    labels = all_labels(torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[3.0, 1.0]]), temperature=2.0, flips=0.1)
    win = 0.9 / (1 + math.exp(-1)) + 0.1 / (1 + math.exp(1))
    assert labels.flatten().tolist() == pytest.approx([0, 0.32 * win, 0.32 * (1 - win), 0])
    assert curvature(labels).flatten().tolist() == pytest.approx([0.32 * win * (1 - win)] * 2)
    loss = expected_loss(labels, lambda chosen, rejected: chosen - 2 * rejected, torch.tensor([[5.0, 7.0]]))
    assert float(loss) == pytest.approx(0.32 * (win * -9 + (1 - win) * -3))


def test_a_quadratic_is_minimised_in_any_units() -> None:
    bends = torch.tensor([[1.0, 1e-6, 1e4]]).double()
    goal = torch.tensor([[1.0, -2.0, 3.0]]).double()
    torch.testing.assert_close(minimise(lambda x: (bends * (x - goal).square()).sum(), bends), goal)


def turned(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    return dpo_loss(rejected, chosen, beta=beta)


def missed(finding: Finding) -> int:
    return sum(not bound.holds for bound in finding.bounds)


def test_the_checks_hold_on_the_bandit_and_miss_when_labels_are_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def structured(_: str) -> World:
        return bandit()

    monkeypatch.setattr(direct_checks, "worlds", lambda: [bandit()])
    monkeypatch.setattr(direct_checks, "sequences", structured)
    checks = [direct_checks.dpo, direct_checks.ipo, direct_checks.scaled, direct_checks.smoothing]
    assert [missed(check(0.25)) for check in checks] == [0, 0, 0, 0]
    monkeypatch.setattr(direct_checks, "dpo_loss", turned)
    assert missed(direct_checks.dpo(0.25)) == 1
    assert missed(direct_checks.scaled(0.25)) == 1
    monkeypatch.setattr(direct_checks, "ipo_loss", dpo_loss)
    assert missed(direct_checks.ipo(0.25)) == 2  # neither at its own optimum nor away from that of J
