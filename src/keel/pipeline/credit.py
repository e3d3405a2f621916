"""From scores to what each token is credited with: shaped rewards, advantages, the critic's targets, the leash."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keel.config.kl import KLConfig
from keel.config.ppo import AdvantageConfig, PPOConfig
from keel.functional import advantages as estimators
from keel.functional.advantages import leave_one_out_mean
from keel.functional.kl import k1
from keel.functional.preference import bradley_terry_probability
from keel.functional.rewards import length_penalty, shape_rewards, transform_scores
from keel.pipeline.measures import kl_per_response
from keel.records import Credit, Leash, Rollout
from keel.seeds import Draws


def shape(rollout: Rollout, kl_coef: float, score_scale: float, config: PPOConfig) -> Tensor:
    """Rewards [B, T]: its worth on the last token, minus the leash's price on every token (math.md §4).

    `score_scale` divides the scores. The price is 0 where the leash is a term of the loss.
    """
    shaping, mask = config.shaping, rollout.response_mask
    return shape_rewards(
        transform_scores(rollout.scores.total, scale=score_scale, clip=shaping.clip, whiten=shaping.whiten),
        k1(rollout.logprobs, rollout.ref_logprobs),
        mask,
        rollout.samples.ended,
        kl_coef=0.0 if config.kl.place == "loss" or config.update.loss == "dpo" else kl_coef,
        eos_penalty=shaping.eos_penalty,
        length_cost=length_penalty(
            rollout.sequences.response_lengths,
            per_token=shaping.length_penalty,
            buffer=shaping.overlong_buffer,
            max_length=config.sampling.max_new_tokens,
        ),
    )


def label_pairs(rewards: Tensor, rollout: Rollout, kl_coef: float, iteration: int, draws: Draws) -> Credit:
    """Online DPO: neighbours in a group as pairs, each labelled by a Bradley-Terry draw from what they are worth.

    A label that always names the better one would have no finite optimum; draws have that of the leashed objective.
    """
    rows = torch.arange(len(rewards)).reshape(-1, 2)
    worth = rewards.sum(dim=1)[rows]
    first_wins = bradley_terry_probability(worth[:, 0], worth[:, 1])
    uniforms = draws.uniforms("label", iteration=iteration, samples=range(len(rows)), length=1)[:, 0]
    pairs = torch.where((torch.as_tensor(uniforms) < first_wins)[:, None], rows, rows.flip(1))
    nothing = torch.zeros_like(rewards)
    return Credit(nothing, nothing, Leash(kl_coef, rollout.ref_logprobs, nothing[:, 0]), pairs)


def estimate_advantages(rewards: Tensor, rollout: Rollout, config: AdvantageConfig) -> Tensor:
    """Advantages [B, T] by the named function of `functional.advantages`, given what its line of the table reads."""
    known: dict[str, Any] = {
        "values": rollout.values,
        "group": rollout.group,
        "gamma": config.gamma,
        "lam": config.lam,
        "n": config.n,
    }
    estimate = getattr(estimators, config.kind)
    advantages: Tensor = estimate(
        rewards=rewards,
        response_mask=rollout.response_mask,
        **{name: known[name] for name in config.estimator.reads},
    )
    return advantages


def baseline(rollout: Rollout, config: AdvantageConfig) -> Tensor:
    """What the estimator took off the return, [B, T]: with the advantages it makes the critic's target."""
    if config.estimator.critic and config.estimator.per_sequence:
        return torch.where(rollout.response_mask, rollout.values[:, :1], 0)
    return rollout.values


def leash_in_loss(rollout: Rollout, kl_coef: float, config: KLConfig) -> Leash | None:
    """The KL as a term of the loss, or None where it is paid in the reward.

    Its baseline is the mean over the prompt's other responses; where each prompt has one, over the other prompts'.
    """
    if config.place == "reward":
        return None
    gaps = kl_per_response(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    group = rollout.group if len(torch.unique(rollout.group)) < len(gaps) else torch.zeros_like(rollout.group)
    return Leash(kl_coef, rollout.ref_logprobs, leave_one_out_mean(gaps, group))
