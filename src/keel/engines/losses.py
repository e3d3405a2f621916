"""The losses of the stages: a module and a micro-batch in, a scalar and its statistics out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from keel.batching import to_device
from keel.config.ppo import UpdateConfig
from keel.functional.masked import masked_sum
from keel.functional.policy import approx_kl_to_old, clipped_policy_loss, clipped_value_loss
from keel.functional.preference import bradley_terry_loss
from keel.records import Pairs, PolicyBatch, Sequences, Texts
from keel.tally import Tally

B = TypeVar("B")
Loss = Callable[[nn.Module, B, float], tuple[Tensor, Tally]]
"""(module, micro-batch, denominator of the whole minibatch) -> its part of the loss, and its statistics."""


def sft_loss(module: nn.Module, batch: Texts | Sequences, denominator: float) -> tuple[Tensor, Tally]:
    """Negative log-likelihood of the tokens that train, end tokens included (math.md §1)."""
    batch = to_device(batch, _device(module))
    total = -masked_sum(module(batch).logprobs, batch.target_mask)
    tally = Tally()
    tally.add("sft/loss", float(total.detach()), batch.weight)
    return total / denominator, tally


def reward_loss(flip_probability: float, label_smoothing: float) -> Loss[Pairs]:
    """Bradley-Terry on weighted pairs (math.md §1)."""

    def loss(module: nn.Module, batch: Pairs, denominator: float) -> tuple[Tensor, Tally]:
        device = _device(module)
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
        gap = (chosen - rejected).detach()
        right = (gap > 0).float() + 0.5 * (gap == 0).float()
        total = (weights * losses).sum()
        tally = Tally()
        tally.add("reward/loss", float(total.detach()), batch.weight)
        tally.add("reward/accuracy", float((weights * right).sum()), batch.weight)
        tally.add("reward/margin", float((weights * gap).sum()), batch.weight)
        return total / denominator, tally

    return loss


def ppo_loss(config: UpdateConfig, temperature: float, *, critic: bool = True) -> Loss[PolicyBatch]:
    """Clipped policy loss + value_coef x clipped value loss - entropy_coef x exact entropy (math.md §6)."""

    def loss(module: nn.Module, batch: PolicyBatch, denominator: float) -> tuple[Tensor, Tally]:
        device = _device(module)
        sequences = to_device(batch.sequences, device)
        mask = sequences.response_mask
        old_logprobs = batch.old_logprobs.to(device)
        output = module(sequences, temperature=temperature, entropy=True, values=critic)
        policy = clipped_policy_loss(
            output.logprobs,
            old_logprobs,
            batch.advantages.to(device),
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            denominator=denominator,
            importance=None if batch.importance is None else batch.importance.to(device),
        )
        value = torch.zeros((), device=device)
        if critic:
            value = clipped_value_loss(
                output.values,
                batch.old_values.to(device),
                batch.returns.to(device),
                mask,
                clip_range=config.value_clip,
                denominator=denominator,
            )
        entropy = masked_sum(output.entropy, mask)
        total = policy.loss + config.value_coef * value - config.entropy_coef * entropy / denominator
        with torch.no_grad():
            tokens = batch.weight
            tally = Tally()
            tally.add("ppo/loss/policy", float(policy.loss) * denominator, tokens)
            tally.add("ppo/loss/value", float(value) * denominator, tokens)
            tally.add("ppo/policy/entropy", float(entropy), tokens)
            tally.add("ppo/policy/clipfrac", float(policy.clipped.sum()), tokens)
            old_kl = approx_kl_to_old(output.logprobs, old_logprobs, mask)
            tally.add("ppo/policy/approxkl", float(old_kl.sum()), tokens)
            tally.extreme("ppo/policy/ratio_gap", float((policy.ratio - 1).abs().max()))
        return total, tally

    return loss


def _device(module: nn.Module) -> torch.device:
    device: Any = module.device
    assert isinstance(device, torch.device)
    return device
