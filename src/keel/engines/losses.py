"""The losses of the stages: a module and a micro-batch in, a scalar and its statistics out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from keel.batching import to_device
from keel.config.ppo import PPOConfig, UpdateConfig
from keel.functional.direct import dpo_loss
from keel.functional.ensembles import disagreement
from keel.functional.kl import sequence_k2_term, token_k2_term, token_k3_term
from keel.functional.masked import keep, masked_sum
from keel.functional.policy import (
    PolicyLoss,
    Reduction,
    approx_kl_to_old,
    clipped_policy_loss,
    clipped_value_loss,
    loss_denominator,
    policy_gradient_loss,
    policy_ratio,
    token_weights,
)
from keel.functional.preference import bradley_terry_loss
from keel.records import Leash, Pairs, PolicyBatch, Sequences, Texts
from keel.tally import Tally

B = TypeVar("B")
Loss = Callable[[nn.Module, B, float], tuple[Tensor, Tally]]
"""(module, micro-batch, denominator of the whole minibatch) -> its part of the loss, and its statistics."""


def sft_loss(module: nn.Module, batch: Texts | Sequences, denominator: float) -> tuple[Tensor, Tally]:
    """Negative log-likelihood of the tokens that train, end tokens included (math.md §1)."""
    batch = to_device(batch, device_of(module))
    total = -masked_sum(module(batch).logprobs, batch.target_mask)
    tally = Tally()
    tally.add("sft/loss", float(total.detach()), batch.weight)
    return total / denominator, tally


def reward_loss(flip_probability: float, label_smoothing: float) -> Loss[Pairs]:
    """Bradley-Terry on weighted pairs (math.md §1)."""

    def loss(module: nn.Module, batch: Pairs, denominator: float) -> tuple[Tensor, Tally]:
        device = device_of(module)
        scores = module(to_device(batch.rows, device))
        chosen, rejected = scores[batch.chosen.to(device)], scores[batch.rejected.to(device)]
        weights = batch.weights.to(device)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            margin=batch.margins.to(device),
            flip_probability=flip_probability,
            label_smoothing=label_smoothing,
        )
        total = (weights * losses).sum()
        tally = Tally()
        tally.add("reward/loss", float(total.detach()), batch.weight)
        add_pairs(tally, (chosen - rejected).detach(), weights)
        return total / denominator, tally

    return loss


def add_pairs(tally: Tally, gap: Tensor, weights: Tensor) -> None:
    """Accuracy (a tie counts ½) and margin of pairs [N], by the score of the better response minus the worse one's."""
    right = (gap > 0).float() + 0.5 * (gap == 0).float()
    tally.add("reward/accuracy", float((weights * right).sum()), float(weights.sum()))
    tally.add("reward/margin", float((weights * gap).sum()), float(weights.sum()))


def ensemble_loss(member_loss: Loss[Pairs]) -> Loss[Pairs]:
    """The mean over the members of `member_loss`, each on its own sample of the pairs; the module gives [B, k].

    Loss, accuracy and margin are told of the members' mean score, on the pairs as they are. All members' losses have
    the denominator of those: a member's weights are their own times a number of mean 1.
    """

    def loss(module: nn.Module, batch: Pairs, denominator: float) -> tuple[Tensor, Tally]:
        device = device_of(module)
        scores = module(to_device(batch.rows, device))
        drawn = batch.drawn if batch.drawn is not None else torch.ones(len(batch.weights), scores.shape[1])
        losses = [
            member_loss(_Given(member), replace(batch, weights=batch.weights * times), denominator)[0]
            for member, times in zip(scores.T, drawn.T, strict=True)
        ]
        with torch.no_grad():
            _, tally = member_loss(_Given(scores.mean(dim=1)), batch, denominator)
            gaps = scores[batch.chosen.to(device)] - scores[batch.rejected.to(device)]
            right = ((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean(dim=1)
            weights = batch.weights.to(device)
            tally.add("reward/members/accuracy", float((weights * right).sum()), batch.weight)
            tally.add("reward/members/disagreement", float((weights * disagreement(gaps)).sum()), batch.weight)
        return torch.stack(losses).mean(), tally

    return loss


class _Given(nn.Module):
    """Scores that are computed already, as a module."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores
        self.device = scores.device

    def forward(self, sequences: Sequences) -> Tensor:
        return self.scores


def ppo_loss(config: PPOConfig) -> Loss[PolicyBatch]:
    """Policy loss + value_coef x clipped value loss - entropy_coef x exact entropy + kl.coef x leash (math.md §6).

    Policy, entropy and leash are reduced alike, so that their coefficients mean the same whatever the reduction; the
    critic's error is a mean over tokens.
    """
    if config.update.loss == "dpo":
        return _online_dpo_loss(config)
    settings, critic = config.update, config.critic != "none"
    sequences = config.rollout_batch // settings.minibatches
    level = _LEVELS.get(settings.ratio, settings.reduction)

    def loss(module: nn.Module, batch: PolicyBatch, denominator: float) -> tuple[Tensor, Tally]:
        batch = _moved(batch, device_of(module))
        mask = batch.sequences.response_mask
        output = module(batch.sequences, temperature=config.sampling.temperature, entropy=True, values=critic)
        reduced = loss_denominator(
            level, tokens=denominator, sequences=sequences, max_length=config.sampling.max_new_tokens
        )
        weights = token_weights(mask, level, output.logprobs.dtype)
        policy = _policy_loss(settings, output.logprobs, batch, reduced)
        value = output.logprobs.new_zeros(())
        if critic:
            value = clipped_value_loss(
                output.values,
                batch.old_values,
                batch.returns,
                mask,
                clip_range=settings.value_clip,
                denominator=denominator,
            )
        entropy = (weights * output.entropy).sum() / reduced
        total = policy.loss + settings.value_coef * value
        if settings.entropy_coef:  # else its gradient is not worth a pass over the logits
            total = total - settings.entropy_coef * entropy
        if batch.leash is not None:
            term = _leash_term(config.kl.estimator, batch.leash, output.logprobs, batch)
            if batch.importance is not None:
                term = term * keep(batch.importance, mask)
            total = total + batch.leash.coef * (weights * term).sum() / reduced
        with torch.no_grad():
            tally = _policy_tally(output.logprobs, batch)
            tally.add("ppo/policy/clipfrac", float(policy.clipped.sum()), batch.weight)
            tally.add("ppo/loss/policy", float(policy.loss) * denominator, batch.weight)
            if critic:
                tally.add("ppo/loss/value", float(value) * denominator, batch.weight)
            tally.add("ppo/policy/entropy", float(masked_sum(output.entropy, mask)), batch.weight)
        return total, tally

    return loss


def _online_dpo_loss(config: PPOConfig) -> Loss[PolicyBatch]:
    """DPO on pairs of fresh responses; the rows of a batch alternate, the preferred one first. beta is the leash's."""
    pairs = config.rollout_batch // 2 // config.update.minibatches

    def loss(module: nn.Module, batch: PolicyBatch, denominator: float) -> tuple[Tensor, Tally]:
        batch = _moved(batch, device_of(module))
        assert batch.leash is not None
        mask = batch.sequences.response_mask
        output = module(batch.sequences, temperature=config.sampling.temperature, entropy=True)
        log_ratios = keep(output.logprobs - batch.leash.ref_logprobs, mask).sum(dim=1)
        chosen, rejected = log_ratios[0::2], log_ratios[1::2]
        total = dpo_loss(chosen, rejected, beta=batch.leash.coef).sum() / pairs
        with torch.no_grad():
            tally = _policy_tally(output.logprobs, batch)
            tally.add("ppo/loss/policy", float(total) * denominator, batch.weight)
            tally.add("ppo/policy/entropy", float(masked_sum(output.entropy, mask)), batch.weight)
            tally.add("ppo/pairs/accuracy", float((chosen > rejected).sum()), float(len(chosen)))
        return total, tally

    return loss


_LEVELS: Mapping[str, Reduction] = {"sequence": "sequence_sum", "gspo": "sequence_mean"}
"""How the gradient of a clipped response is spread over its tokens: as a sum, or a mean."""


def _policy_loss(config: UpdateConfig, logprobs: Tensor, batch: PolicyBatch, denominator: float) -> PolicyLoss:
    """What the advantages teach; each response counts once where its ratio is one number."""
    mask, advantages = batch.sequences.response_mask, batch.advantages
    level: Reduction = config.reduction if config.ratio == "token" else "sequence_mean"
    weights = token_weights(mask, level, logprobs.dtype)
    if batch.importance is not None:
        weights = weights * batch.importance
    if config.loss == "policy_gradient":
        loss = policy_gradient_loss(logprobs, advantages, mask, denominator=denominator, weights=weights)
        return PolicyLoss(loss, ratio=torch.ones_like(logprobs), clipped=torch.zeros_like(mask))
    return clipped_policy_loss(
        logprobs,
        batch.old_logprobs,
        advantages,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        denominator=denominator,
        ratio=config.ratio,
        weights=weights,
    )


def _leash_term(estimator: str | None, leash: Leash, logprobs: Tensor, batch: PolicyBatch) -> Tensor:
    """The KL in the loss, [B, T], on samples of the old policy."""
    mask = batch.sequences.response_mask
    ratio = policy_ratio(logprobs, batch.old_logprobs, mask)
    if estimator == "token_k2":
        return token_k2_term(logprobs, leash.ref_logprobs, ratio, mask)
    if estimator == "token_k3":
        return token_k3_term(logprobs, leash.ref_logprobs, ratio, mask)
    return sequence_k2_term(logprobs, leash.ref_logprobs, ratio, mask, leash.baseline)


def _policy_tally(logprobs: Tensor, batch: PolicyBatch) -> Tally:
    """How far the policy is from the one that sampled."""
    tally, mask = Tally(), batch.sequences.response_mask
    tally.add("ppo/policy/approxkl", float(approx_kl_to_old(logprobs, batch.old_logprobs, mask).sum()), batch.weight)
    ratio = policy_ratio(logprobs, batch.old_logprobs, mask)
    tally.extreme("ppo/policy/ratio_gap", float((ratio - 1).abs().max()))
    return tally


def _moved(batch: PolicyBatch, device: torch.device) -> PolicyBatch:
    """The batch on another device."""
    leash, importance = batch.leash, batch.importance
    if leash is not None:
        leash = replace(leash, ref_logprobs=leash.ref_logprobs.to(device), baseline=leash.baseline.to(device))
    return replace(
        batch,
        sequences=to_device(batch.sequences, device),
        old_logprobs=batch.old_logprobs.to(device),
        old_values=batch.old_values.to(device),
        advantages=batch.advantages.to(device),
        returns=batch.returns.to(device),
        importance=None if importance is None else importance.to(device),
        leash=leash,
    )


def device_of(module: nn.Module) -> torch.device:
    """Where the module's batches go."""
    device: Any = module.device
    assert isinstance(device, torch.device)
    return device
