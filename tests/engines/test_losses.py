from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.batching import pad_rows
from keel.config.ppo import PPOConfig, UpdateConfig
from keel.engines.losses import ensemble_loss, ppo_loss, reward_loss, sft_loss
from keel.models.critic import ValueHead
from keel.models.ensemble import RewardEnsemble
from keel.models.hidden import last_hidden
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from keel.records import Leash, Pairs, PolicyBatch
from tests.engines.helpers import exact_logits, exact_logprobs, ppo_config, tiny_policy, tiny_reward_model
from tests.worlds import random_rows, tiny_classifier

ROWS = random_rows([(3, 5), (1, 2), (6, 4)], seed=1)
TEMPERATURE = 0.7
DENOMINATOR = 20.0  # the minibatch's; this micro-batch has 11 tokens


def made_up(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn((3, 5), generator=torch.Generator().manual_seed(seed)) * scale


def ppo_batch(policy: Policy) -> PolicyBatch:
    """Old log-probabilities near the policy's, so that some ratios are clipped and some are not."""
    sequences = pad_rows(ROWS)
    old = torch.zeros(3, 5)
    for index, row in enumerate(ROWS):
        old[index, : row.response_length] = exact_logprobs(policy.backbone, row, TEMPERATURE).float()
    return PolicyBatch(sequences, old + made_up(0, 0.3), made_up(1, 0.3), made_up(2), made_up(3))


def naive_values(policy: Policy, index: int) -> list[float]:
    row = ROWS[index]
    assert isinstance(policy.critic, ValueHead)
    with torch.no_grad():
        hidden = last_hidden(policy.backbone, torch.tensor([row.tokens]))[0]
        values: list[float] = policy.critic(hidden[row.prompt_length - 1 : -1]).tolist()
    return values


def naive_ppo(policy: Policy, batch: PolicyBatch, config: UpdateConfig) -> dict[str, float]:
    """A loop over tokens with floats alone: sums over the response tokens, by math.md §6."""
    sums: dict[str, float] = dict.fromkeys(("policy", "value", "entropy", "clipped", "kl", "gap"), 0.0)
    for index, row in enumerate(ROWS):
        logits, values = exact_logits(policy.backbone, row) / TEMPERATURE, naive_values(policy, index)
        for t in range(row.response_length):
            weights = [math.exp(value) for value in logits[t].tolist()]
            probabilities = [weight / sum(weights) for weight in weights]
            ratio = probabilities[row.tokens[row.prompt_length + t]] / math.exp(batch.old_logprobs[index, t])
            advantage, old_value = float(batch.advantages[index, t]), float(batch.old_values[index, t])
            clipped_ratio = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            sums["policy"] -= min(ratio * advantage, clipped_ratio * advantage)
            sums["clipped"] += (ratio > 1 + config.clip_high and advantage > 0) or (
                ratio < 1 - config.clip_low and advantage < 0
            )
            sums["kl"] += ratio - 1 - math.log(ratio)
            sums["gap"] = max(sums["gap"], abs(ratio - 1))
            sums["entropy"] -= sum(p * math.log(p) for p in probabilities)
            target, error = float(batch.returns[index, t]), values[t] - float(batch.returns[index, t])
            if config.value_clip is not None:
                near = min(max(values[t], old_value - config.value_clip), old_value + config.value_clip)
                error = max(abs(error), abs(near - target))
            sums["value"] += 0.5 * error**2
    return sums


@pytest.mark.parametrize(
    "config",
    [
        UpdateConfig(),
        UpdateConfig(clip_low=0.1, clip_high=0.3, value_clip=None, value_coef=0.3, entropy_coef=0.05),
        UpdateConfig(value_coef=0.0, entropy_coef=0.5),
    ],
)
def test_ppo_loss_and_statistics_are_a_loop_over_tokens(config: UpdateConfig) -> None:
    policy = tiny_policy(critic=True)
    batch = ppo_batch(policy)
    loss, tally = ppo_loss(ppo_config(TEMPERATURE, **config.model_dump(exclude_unset=True)))(policy, batch, DENOMINATOR)
    naive = naive_ppo(policy, batch, config)
    expected = naive["policy"] + config.value_coef * naive["value"] - config.entropy_coef * naive["entropy"]
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    assert 2 <= naive["clipped"] <= 9, "the case should clip some tokens and not others"
    means = tally.means()
    assert means == pytest.approx(
        {
            "ppo/loss/policy": naive["policy"] / 11,
            "ppo/loss/value": naive["value"] / 11,
            "ppo/policy/entropy": naive["entropy"] / 11,
            "ppo/policy/clipfrac": naive["clipped"] / 11,
            "ppo/policy/approxkl": naive["kl"] / 11,
            "ppo/policy/ratio_gap": naive["gap"],
        },
        rel=1e-4,
    )
    assert {weight for _, weight in tally.sums.values()} == {11.0}


# one response of 5 tokens, one of 2 and one of 4, in a minibatch of 4 responses that may have 7 tokens each
SPREAD = {
    "token_mean": [1 / DENOMINATOR] * 3,
    "sequence_sum": [1 / 4] * 3,
    "sequence_mean": [1 / (4 * length) for length in (5, 2, 4)],
    "sequence_sum_by_max_length": [1 / (4 * 7)] * 3,
}


def naive_objective(policy: Policy, batch: PolicyBatch, config: PPOConfig) -> dict[str, float]:
    """Policy loss, entropy and leash by loops over responses, for one advantage a response."""
    update, sums = config.update, {"policy": 0.0, "entropy": 0.0, "leash": 0.0}
    level = {"token": update.reduction, "sequence": "sequence_sum", "gspo": "sequence_mean"}[update.ratio]
    for index, row in enumerate(ROWS):
        steps = range(row.response_length)
        logits = exact_logits(policy.backbone, row) / TEMPERATURE
        logprobs = exact_logprobs(policy.backbone, row, TEMPERATURE).tolist()
        log_ratios = [logprobs[t] - float(batch.old_logprobs[index, t]) for t in steps]
        advantage, share = float(batch.advantages[index, 0]), SPREAD[level][index]
        if update.loss == "policy_gradient":
            sums["policy"] -= share * sum(logprobs) * advantage
        elif update.ratio == "token":
            sums["policy"] -= share * sum(clipped(math.exp(one), advantage) for one in log_ratios)
        else:
            mean = sum(log_ratios) / len(log_ratios)
            sums["policy"] -= clipped(math.exp(mean if update.ratio == "gspo" else sum(log_ratios)), advantage) / 4
        entropies = [float(-(one.softmax(-1) * one.log_softmax(-1)).sum()) for one in logits]
        sums["entropy"] += share * sum(entropies)
        if batch.leash is not None:
            gaps = [logprobs[t] - float(batch.leash.ref_logprobs[index, t]) for t in steps]
            whole = sum(gaps) - float(batch.leash.baseline[index])
            for log_ratio, d in zip(log_ratios, gaps, strict=True):
                terms = {"sequence_k2": whole, "token_k2": d * d / 2, "token_k3": math.exp(-d) - 1 + d}
                sums["leash"] += share * math.exp(log_ratio) * terms[str(config.kl.estimator)]
    return sums


def clipped(ratio: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)


@pytest.mark.parametrize("estimator", ["sequence_k2", "token_k2", "token_k3"])
@pytest.mark.parametrize(
    "update",
    [
        *({"reduction": reduction} for reduction in SPREAD),
        {"ratio": "sequence"},
        {"ratio": "gspo"},
        {"loss": "policy_gradient", "reduction": "sequence_sum"},
        {"loss": "policy_gradient"},
    ],
)
def test_losses_ratios_reductions_and_leashes_are_loops_over_responses(update: dict[str, Any], estimator: str) -> None:
    policy = tiny_policy(critic=True)
    minibatches = 1 if update.get("loss") else 2
    config = ppo_config(
        TEMPERATURE,
        ppo={
            "rollout_batch": 4 * minibatches,
            "sampling": {"temperature": TEMPERATURE, "max_new_tokens": 7},
            "advantage": {"kind": "sequence", "whiten": False},
            "kl": {"place": "loss", "estimator": estimator},
        },
        minibatches=minibatches,
        value_coef=0.0,
        value_clip=0.2,
        entropy_coef=0.3,
        **update,
    )
    drawn = ppo_batch(policy)
    leash = Leash(0.7, drawn.old_logprobs + made_up(4, 0.5), made_up(5)[:, 0])
    batch = replace(drawn, advantages=drawn.advantages[:, :1].expand(3, 5), leash=leash)
    naive = naive_objective(policy, batch, config)
    loss, tally = ppo_loss(config)(policy, batch, DENOMINATOR)
    expected = naive["policy"] - 0.3 * naive["entropy"] + 0.7 * naive["leash"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert tally.means()["ppo/loss/policy"] == pytest.approx(naive["policy"] * DENOMINATOR / 11, rel=1e-4)


def test_importance_weighs_what_the_advantages_teach_and_the_leash_alike() -> None:
    policy = tiny_policy(critic=True)
    advantage = {"kind": "gae", "whiten": False}
    config = ppo_config(TEMPERATURE, ppo={"advantage": advantage, "kl": {"place": "loss"}}, value_coef=0.0)
    drawn = ppo_batch(policy)
    batch = replace(drawn, leash=Leash(0.7, drawn.old_logprobs + made_up(4, 0.5), made_up(5)[:, 0]))
    loss, _ = ppo_loss(config)(policy, batch, DENOMINATOR)
    weighed, _ = ppo_loss(config)(policy, replace(batch, importance=torch.full((3, 5), 1.5)), DENOMINATOR)
    assert weighed.item() == pytest.approx(1.5 * loss.item(), rel=1e-5)


def test_online_dpo_is_a_loop_over_pairs() -> None:
    policy = tiny_policy()
    config = ppo_config(TEMPERATURE, ppo={"rollout_batch": 8}, loss="dpo", minibatches=2)
    rows = [*ROWS, ROWS[0]]
    sequences, generator = pad_rows(rows), torch.Generator().manual_seed(3)
    ref = torch.randn(sequences.response_mask.shape, generator=generator)
    nothing = torch.full_like(ref, math.nan)
    logprobs = [exact_logprobs(policy.backbone, row, TEMPERATURE).tolist() for row in rows]
    old = torch.zeros_like(ref)
    for index, known in enumerate(logprobs):
        old[index, : len(known)] = torch.tensor(known) - 0.1
    batch = PolicyBatch(sequences, old, nothing, nothing, nothing, leash=Leash(0.4, ref, nothing[:, 0]))
    ratios = [sum(known) - float(ref[index, : len(known)].sum()) for index, known in enumerate(logprobs)]
    gaps = [0.4 * (ratios[0] - ratios[1]), 0.4 * (ratios[2] - ratios[3])]
    expected = -sum(math.log(sigmoid(gap)) for gap in gaps) / 2  # of the two pairs of a minibatch
    loss, tally = ppo_loss(config)(policy, batch, batch.weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert tally.means()["ppo/pairs/accuracy"] == sum(gap > 0 for gap in gaps) / 2
    assert tally.means()["ppo/policy/ratio_gap"] == pytest.approx(math.exp(0.1) - 1, rel=1e-3)


def after_a_step(config: UpdateConfig, advantages: float) -> tuple[dict[str, float], dict[str, float]]:
    """Statistics before and after one plain gradient step, with advantages all alike."""
    policy = tiny_policy(critic=True)
    drawn = ppo_batch(policy)
    with torch.no_grad():
        logprobs = policy(drawn.sequences, temperature=TEMPERATURE).logprobs
    everywhere = torch.full_like(drawn.advantages, advantages)
    batch = PolicyBatch(drawn.sequences, logprobs, drawn.old_values, everywhere, drawn.returns)
    loss_function = ppo_loss(ppo_config(TEMPERATURE, **config.model_dump(exclude_unset=True)))
    loss, before = loss_function(policy, batch, batch.weight)
    torch.autograd.backward(loss)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.grad is not None:
                weight.sub_(0.003 * weight.grad)
        after = loss_function(policy, batch, batch.weight)[1]
        moved = {"logprob": float((policy(batch.sequences, temperature=TEMPERATURE).logprobs - logprobs).sum())}
    return before.means(), after.means() | moved


def test_an_entropy_coefficient_raises_the_entropy() -> None:
    before, after = after_a_step(UpdateConfig(value_coef=0.0, entropy_coef=1.0), advantages=0.0)
    assert after["ppo/policy/entropy"] > before["ppo/policy/entropy"] + 1e-4


def test_a_value_coefficient_brings_values_to_the_returns() -> None:
    before, after = after_a_step(UpdateConfig(value_coef=1.0, value_clip=None), advantages=0.0)
    assert after["ppo/loss/value"] < before["ppo/loss/value"] - 1e-3


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_good_tokens_become_likelier_and_bad_ones_rarer(sign: float) -> None:
    _, after = after_a_step(UpdateConfig(value_coef=0.0), advantages=sign)
    assert sign * after["logprob"] > 1e-2


def test_sft_loss_is_the_negative_log_likelihood_of_the_response() -> None:
    policy = tiny_policy()
    expected = -sum(float(exact_logprobs(policy.backbone, row, 1.0).sum()) for row in ROWS)
    loss, tally = sft_loss(policy, pad_rows(ROWS), DENOMINATOR)
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    assert tally.means() == pytest.approx({"sft/loss": expected / 11}, rel=1e-5)


CHOSEN, REJECTED = [0, 2, 0, 1], [1, 1, 2, 1]  # the last compares a response with itself: a tie
WEIGHTS = [1.0, 0.5, 2.0, 0.25]


def pairs(margins: list[float]) -> Pairs:
    numbers: dict[str, Any] = {"chosen": torch.tensor(CHOSEN), "rejected": torch.tensor(REJECTED)}
    return Pairs(rows=pad_rows(ROWS), margins=torch.tensor(margins), weights=torch.tensor(WEIGHTS), **numbers)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("flip", "smoothing", "margins"),
    [(0.0, 0.0, [0.0] * 4), (0.0, 0.0, [0.3, 0.0, 1.0, 0.2]), (0.1, 0.0, [0.0] * 4), (0.0, 0.2, [0.0] * 4)],
)
def test_reward_loss_is_a_loop_over_pairs(flip: float, smoothing: float, margins: list[float]) -> None:
    model = tiny_reward_model()
    with torch.no_grad():
        scores = [float(model(pad_rows([row]))) for row in ROWS]
    expected, gaps, right = 0.0, 0.0, 0.0
    for chosen, rejected, margin, weight in zip(CHOSEN, REJECTED, margins, WEIGHTS, strict=True):
        gap = scores[chosen] - scores[rejected]
        p = sigmoid(gap - margin)
        expected -= weight * (
            math.log((1 - flip) * p + flip * (1 - p))
            if flip
            else (1 - smoothing) * math.log(p) + smoothing * math.log(1 - p)
        )
        gaps += weight * gap
        right += weight * (1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
    loss, tally = reward_loss(flip, smoothing)(model, pairs(margins), DENOMINATOR)
    assert loss.item() == pytest.approx(expected / DENOMINATOR, rel=1e-5)
    assert tally.means() == pytest.approx(
        {"reward/loss": expected / 3.75, "reward/accuracy": right / 3.75, "reward/margin": gaps / 3.75}, rel=1e-4
    )


def test_a_step_down_the_reward_loss_parts_chosen_from_rejected() -> None:
    model = tiny_reward_model()
    loss, before = reward_loss(0.0, 0.0)(model, pairs([0.0] * 4), 3.75)
    torch.autograd.backward(loss)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight.sub_(0.001 * weight.grad)
        after = reward_loss(0.0, 0.0)(model, pairs([0.0] * 4), 3.75)[1]
    assert after.means()["reward/margin"] > before.means()["reward/margin"] + 1e-3


@pytest.mark.parametrize("sampled", [True, False])
def test_the_loss_of_an_ensemble_is_the_mean_of_its_members(sampled: bool) -> None:
    """Each pair's log-loss by hand, times how often a member's own sample has it."""
    part = RewardModel(tiny_classifier())
    part.reset_head(1, 2)
    part.normalise([0.0, 0.0], 0.002)
    module = RewardEnsemble([part])
    drawn = torch.tensor([[2.0, 0.0], [1.0, 3.0]]) if sampled else None
    weights, margins = [1.0, 0.5], [0.0, 0.25]
    chosen, rejected = torch.tensor([0, 2]), torch.tensor([1, 0])
    batch = Pairs(pad_rows(ROWS), chosen, rejected, torch.tensor(margins), torch.tensor(weights), drawn)
    found, tally = ensemble_loss(reward_loss(0.0, 0.0))(module, batch, 6.0)

    scores = module(pad_rows(ROWS)).detach()
    gaps = scores[chosen] - scores[rejected]
    times = [[2.0, 0.0], [1.0, 3.0]] if sampled else [[1.0, 1.0], [1.0, 1.0]]
    expected = sum(
        weights[pair] * times[pair][member] * math.log1p(math.exp(margins[pair] - float(gaps[pair, member])))
        for pair in range(2)
        for member in range(2)
    )
    assert found.item() == pytest.approx(expected / 2 / 6.0, abs=1e-6)
    assert found.requires_grad

    means = tally.means()
    mean_gaps = [float(gap.mean()) for gap in gaps]
    by_hand = sum(w * math.log1p(math.exp(m - g)) for w, m, g in zip(weights, margins, mean_gaps, strict=True))
    assert means["reward/loss"] == pytest.approx(by_hand / 1.5, abs=1e-6)
    assert means["reward/accuracy"] == pytest.approx(
        sum(w * (g > 0) for w, g in zip(weights, mean_gaps, strict=True)) / 1.5
    )
    right = [sum(float(gap) > 0 for gap in pair) / 2 for pair in gaps]
    assert means["reward/members/accuracy"] == pytest.approx((right[0] + 0.5 * right[1]) / 1.5)
    apart = [abs(float(one) - float(other)) / 2 for one, other in gaps]  # the population's sd of two
    assert means["reward/members/disagreement"] == pytest.approx((apart[0] + 0.5 * apart[1]) / 1.5, abs=1e-6)
    assert apart[0] > 0.01
