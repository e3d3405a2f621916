"""The checks of estimators pass as they are, and each miss where something is broken."""

from __future__ import annotations

import pytest
from torch import Tensor

from keel.functional import advantages as estimate
from keel.functional.kl import k2
from keel.verify import biases, estimators, exact_checks, variances
from keel.verify.enumeration import Enumeration
from keel.verify.estimators import WAYS
from keel.verify.result import Finding
from keel.verify.worlds import World, bandit, sequences


def missed(finding: Finding) -> set[str]:
    return {bound.what for bound in finding.bounds if not bound.holds}


def test_every_check_of_estimators_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variances, "_PICTURE", (0.5,))
    for check in (*estimators.CHECKS, *biases.CHECKS, *variances.CHECKS):
        assert missed(check.measure()) == set(), check.name


def test_k2_is_not_taken_for_the_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "worlds", lambda: [bandit()])
    monkeypatch.setattr(estimators, "k1", k2)
    assert missed(estimators.kl_estimators()) == {"E[k1] − KL"}


def test_a_flipped_sign_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = estimate.n_step

    def flipped(rewards: Tensor, values: Tensor, response_mask: Tensor, *, n: int) -> Tensor:
        return -right(rewards, values, response_mask, n=n)

    monkeypatch.setattr(estimate, "n_step", flipped)
    assert missed(estimators.means()) == {"n_step 2, exact V"}


def test_a_wrong_critic_that_is_called_exact_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the critic stands in for rewards; as a mere baseline it does no harm."""
    monkeypatch.setattr(Enumeration, "state_values", property(lambda space: space.world.ref_logits[..., 0]))
    assert missed(estimators.means()) == {
        "gae λ = 0.95, exact V",
        "gae λ = 0.5, exact V",
        "n_step 2, exact V",
        "td, exact V",
        "clip, token ratio",
    }


def test_a_baseline_that_holds_the_response_itself_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "rloo", estimate.dr_grpo)
    assert {what.split(",")[0] for what in missed(estimators.group_means())} == {"rloo"}


def test_a_critic_without_error_shows_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biases, "wrong_critic", lambda space: space.state_values)
    names = {what.split(":")[0] for what in missed(biases.biases())}
    assert names == {"gae λ = 0.95, wrong V", "gae λ = 0.5, wrong V", "n_step 2, wrong V", "td, wrong V"}


def test_each_claim_on_variances_can_be_missed() -> None:
    """REINFORCE in place of reward-to-go is neither below nor above it; a λ that counts the other way round rises."""
    found = {name: dict(variances.spread(estimators.on_the_way(_structured(), way))) for name, way in WAYS.items()}
    assert not [bound for bound in variances.claims(found) if not bound.holds]
    for here in found.values():
        here["reward_to_go"] = here["reinforce"]
        here["td"], here["monte_carlo"] = here["monte_carlo"], here["td"]
    assert {bound.what for bound in variances.claims(found) if not bound.holds} == {
        "reward_to_go / reinforce, away",
        "reward_to_go / reinforce, half-way",
        "a smaller λ / a larger one",
    }


def _structured() -> World:
    return estimators.first_prompt(sequences("structured"))


def test_the_policies_lie_on_the_way() -> None:
    world = exact_checks.worlds()[0]
    assert float(estimators.on_the_way(world, 0.0).rewards.sum(dim=1).sub(world.rewards.flatten()).abs().max()) < 1e-12
    best = estimators.on_the_way(world, 1.0)
    values = best.rewards.sum(dim=1).reshape(world.num_prompts, -1)
    assert float((values - values[:, :1]).abs().max()) < 1e-12  # at the optimum every response is worth as much
