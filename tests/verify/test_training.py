from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from keel.verify import exact, exact_checks, sampled_checks
from keel.verify.result import Finding, Level
from keel.verify.sampled_checks import ALGORITHMS, MEAN_GAP
from keel.verify.training import train_table, world_config
from keel.verify.worlds import World, bandit, response_logprobs


@pytest.fixture(scope="module")
def trained() -> Tensor:
    """The bandit's table after RLOO at beta = .5, through the stage."""
    config = world_config(bandit(), beta=0.5, iterations=250, lr=0.1, advantage={"kind": "rloo"})
    return train_table(bandit(), config, seed=0).logits


def test_samples_lead_to_the_optimum_of_their_beta_and_to_no_other(trained: Tensor) -> None:
    world: World = bandit()
    # pi* written out, response by response
    weights = response_logprobs(world.tree, world.ref_logits).exp() * (world.rewards / 0.5).exp()
    best = weights / weights.sum(dim=1, keepdim=True)
    assert float((trained.softmax(dim=-1)[:, 0] - best).abs().max()) < 0.02
    assert float(exact.gap(world, trained, 0.5).mean()) < MEAN_GAP
    assert float(exact.gap(world, trained, 0.4).mean()) > MEAN_GAP


def test_a_run_notes_its_way() -> None:
    config = world_config(bandit(), beta=0.5, iterations=8, lr=0.1, advantage={"kind": "rloo"})
    course = train_table(bandit(), config, seed=0)
    assert course.iterations == list(range(9))
    start = exact.gap(bandit(), bandit().ref_logits, 0.5)
    assert course.mean_gap[0] == pytest.approx(float(start.mean()))
    assert course.worst_gap[0] == pytest.approx(float(start.max()))
    assert course.mean_gap[-1] == pytest.approx(float(exact.gap(bandit(), course.logits, 0.5).mean()))
    assert course.mean_gap[-1] < course.mean_gap[0]


def holds(finding: Finding) -> bool:
    return all(bound.holds for bound in finding.bounds)


def test_the_exact_checks_miss_where_a_sign_or_a_beta_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right, gap = exact.gradient, exact.gap
    assert holds(exact_checks.ascent(0.5))
    assert holds(exact_checks.identity(0.5))
    monkeypatch.setattr(exact, "gradient", lambda world, logits, beta: right(world, logits, 0.9 * beta))
    assert not holds(exact_checks.ascent(0.5))
    monkeypatch.setattr(exact, "gradient", lambda *arguments: -right(*arguments))
    assert not holds(exact_checks.ascent(0.5))
    monkeypatch.setattr(exact, "gap", lambda world, logits, beta: gap(world, logits, beta) / beta)
    assert not holds(exact_checks.identity(0.5))


def test_a_sampled_check_misses_where_the_policy_has_hardly_moved() -> None:
    short = partial(sampled_checks.reached, seeds=(0,))
    (rloo,) = (algorithm for algorithm in ALGORITHMS if algorithm.name == "rloo")
    assert not holds(short(replace(rloo, iterations=2), bandit))
    assert holds(short(replace(rloo, iterations=250), bandit))


def test_every_algorithm_is_settings_that_a_recipe_takes() -> None:
    for algorithm in ALGORITHMS:
        config = world_config(
            bandit(),
            beta=0.5,
            iterations=2,
            lr=algorithm.lr,
            advantage=algorithm.advantage,
            update=algorithm.update,
            kl=algorithm.kl,
        )
        assert config.advantage.gamma == 1.0
        assert config.update.entropy_coef == 0.0
        assert (config.shaping.clip, config.shaping.whiten, config.shaping.running_scale) == (None, False, False)
        assert torch.isfinite(train_table(bandit(), config, seed=0).logits).all()
    assert len({algorithm.name for algorithm in ALGORITHMS}) == len(ALGORITHMS)
    assert all(algorithm.level is not Level.QUICK for algorithm in ALGORITHMS)
