"""Before any weight has moved, sampler, learner and reference agree: the ratio is 1 and the KL is 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from keel.config.ppo import UpdateConfig
from keel.config.sampling import SamplingConfig
from keel.config.training import OptimConfig
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.engines.scorers import FunctionScorer, PolicyScorer
from keel.functional.kl import k1
from keel.models.critic import ValueNetwork
from keel.models.policy import Policy, TokenOutputs
from keel.pipeline.ppo import policy_batches
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import Credit, PolicyBatch, Rollout, Sequences
from tests.engines.helpers import KEY, items, ppo_config, sampler_of, tiny_policy, tiny_reward_model

PROMPTS = items([1, 9, 4, 4, 13, 2, 7, 5])


def rollout_of_start(policy: Policy, temperature: float, batch: int, *, exact: bool = True) -> Rollout:
    """Sampled with the cache; the reference is a copy of the policy, looked at in other batches."""
    reference = Policy(policy.backbone).eval()
    actors = Actors(
        sampler=sampler_of(policy, range(40)),
        policy=PolicyScorer(policy, temperature=temperature, token_budget=30),
        reference=PolicyScorer(reference, temperature=temperature, token_budget=50),
        scorer=FunctionScorer("none", lambda prompts, responses, rows: [0.0] * len(responses)),
        exact=exact,
    )
    sampling = SamplingConfig(max_new_tokens=10, temperature=temperature, batch=batch)
    return collect_rollout(actors, PROMPTS, sampling, KEY)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(("temperature", "batch"), [(1.0, 8), (0.7, 3)])
def test_ratio_is_one_and_kl_is_zero(family: str, temperature: float, batch: int) -> None:
    policy = tiny_policy(family, critic=True)
    rollout = rollout_of_start(policy, temperature, batch)
    mask = rollout.response_mask
    assert len(set(mask.sum(dim=1).tolist())) >= 4, "responses of many lengths, so that there is padding"
    with torch.no_grad():
        logprobs: Tensor = policy(rollout.sequences, temperature=temperature).logprobs
    assert float(((logprobs - rollout.logprobs).exp() - 1)[mask].abs().max()) < 1e-5
    assert float(k1(rollout.logprobs, rollout.ref_logprobs)[mask].abs().max()) < 1e-5


@pytest.mark.parametrize("critic", ["head", "network", "none"])
@pytest.mark.parametrize("exact", [True, False])
def test_nothing_of_the_policy_is_computed_twice(critic: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(critic=critic == "head")
    if critic == "network":
        policy.critic = ValueNetwork(tiny_reward_model())
    with torch.no_grad():
        sequences = rollout_of_start(policy, 0.7, 3).sequences
        own = policy(sequences, temperature=0.7, values=critic != "none")
    asked: list[tuple[bool, bool]] = []
    forward = policy.forward

    def watched(part: Sequences, *, logprobs: bool = True, values: bool = False, **options: Any) -> TokenOutputs:
        asked.append((logprobs, values))
        return forward(part, logprobs=logprobs, values=values, **options)

    monkeypatch.setattr(policy, "forward", watched)
    rollout = rollout_of_start(policy, 0.7, 3, exact=exact)
    needed = {
        (True, "head"): set(),  # the sampler knows it all
        (True, "network"): {(False, True)},
        (True, "none"): set(),
        (False, "head"): {(True, True)},
        (False, "network"): {(True, True)},
        (False, "none"): {(True, False)},
    }
    assert set(asked) == needed[exact, critic]
    torch.testing.assert_close(rollout.logprobs, own.logprobs, rtol=0, atol=1e-5)
    expected = torch.zeros_like(own.logprobs) if critic == "none" else own.values
    torch.testing.assert_close(rollout.values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_learner_sees_a_ratio_of_one_in_any_cut(budget: int) -> None:
    policy = tiny_policy(critic=True)
    rollout = rollout_of_start(policy, 0.7, 8)
    zeros = torch.zeros_like(rollout.logprobs)
    config = UpdateConfig(token_budget=budget)
    learner = GradientLearner[PolicyBatch]("ppo", policy, ppo_loss(ppo_config(0.7)), OptimConfig(), total_steps=1)
    means = learner.measure(policy_batches(rollout, Credit(zeros, zeros), [[row] for row in range(8)], config)).means()
    assert means["ppo/policy/ratio_gap"] < 1e-5
    assert abs(means["ppo/policy/approxkl"]) < 1e-8
    assert means["ppo/policy/clipfrac"] == 0


def test_another_temperature_would_be_seen() -> None:
    policy = tiny_policy(critic=True)
    rollout = rollout_of_start(policy, 1.0, 8)
    with torch.no_grad():
        logprobs: Tensor = policy(rollout.sequences, temperature=0.7).logprobs
    assert float(((logprobs - rollout.logprobs).exp() - 1)[rollout.response_mask].abs().max()) > 1e-2
