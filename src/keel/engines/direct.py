"""The losses of the direct stage: a policy and a micro-batch of preferences in, a scalar and its statistics out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from keel.batching import to_device
from keel.config.direct import DirectConfig
from keel.engines.losses import Loss
from keel.functional import direct
from keel.records import Choices, Labels
from keel.tally import Tally


def choices_loss(config: DirectConfig) -> Loss[Choices]:
    """`config.kind` on weighted pairs, and `sft_coef` times the chosen one's negative log-likelihood (math.md §7)."""
    pair_loss, options = _method(config)

    def loss(module: nn.Module, batch: Choices, denominator: float) -> tuple[Tensor, Tally]:
        logprobs, lengths = _response_logprobs(module, batch)
        compared = _compared(config, logprobs, lengths, batch)
        chosen, rejected, weights = (
            index.to(logprobs.device) for index in (batch.chosen, batch.rejected, batch.weights)
        )
        losses = pair_loss(compared[chosen], compared[rejected], **options)
        if config.sft_coef:
            losses = losses - config.sft_coef * (logprobs / lengths)[chosen]
        rewards = _rewards(config, compared)
        margin = rewards[chosen] - rewards[rejected]
        right = (margin > 0).float() + 0.5 * (margin == 0).float()
        total = (weights * losses).sum()
        found = {
            "direct/loss": losses,
            "direct/accuracy": right,
            "direct/margin": margin,
            "direct/reward/chosen": rewards[chosen],
            "direct/reward/rejected": rewards[rejected],
            "direct/logprobs/chosen": logprobs[chosen],
            "direct/logprobs/rejected": logprobs[rejected],
        }
        tally = Tally()
        for name, values in found.items():
            tally.add(name, float((weights * values.detach()).sum()), batch.weight)
        return total / denominator, tally

    return loss


def labels_loss(config: DirectConfig) -> Loss[Labels]:
    """`config.kind` on weighted responses that were accepted or not (math.md §7)."""
    label_loss, options = _method(config)

    def loss(module: nn.Module, batch: Labels, denominator: float) -> tuple[Tensor, Tally]:
        logprobs, lengths = _response_logprobs(module, batch)
        compared = _compared(config, logprobs, lengths, batch)
        judged, desirable, weights, point = (
            index.to(logprobs.device) for index in (batch.judged, batch.desirable, batch.weights, batch.reference_point)
        )
        losses = label_loss(compared[judged], desirable, point, **options)
        rewards = _rewards(config, compared.detach())[judged]
        above = rewards - config.beta * point
        right = ((above > 0) == desirable).float().masked_fill(above == 0, 0.5)
        total = (weights * losses).sum()
        tally = Tally()
        tally.add("direct/loss", float(total.detach()), batch.weight)
        tally.add("direct/accuracy", float((weights * right).sum()), batch.weight)
        tally.add("direct/reference_point", float(point) * batch.weight, batch.weight)
        likelihoods = logprobs.detach()[judged]
        for name, values, those in (
            ("direct/reward/chosen", rewards, desirable),
            ("direct/reward/rejected", rewards, ~desirable),
            ("direct/logprobs/chosen", likelihoods, desirable),
            ("direct/logprobs/rejected", likelihoods, ~desirable),
        ):
            if those.any():
                tally.add(name, float((weights * values)[those].sum()), float(weights[those].sum()))
        return total / denominator, tally

    return loss


def _method(config: DirectConfig) -> tuple[Any, dict[str, float]]:
    """The loss of `config.kind`, and what it reads of the configuration."""
    return getattr(direct, f"{config.kind}_loss"), {key: getattr(config, key) for key in config.method.reads}


def _response_logprobs(module: nn.Module, batch: Choices | Labels) -> tuple[Tensor, Tensor]:
    """Log-probability [B] of each whole response, and its tokens [B]; one without a token has length 1."""
    device: Any = module.device
    rows = to_device(batch.rows, device)
    return module(rows).logprobs.sum(dim=1), rows.response_lengths.clamp(min=1)


def _compared(config: DirectConfig, logprobs: Tensor, lengths: Tensor, batch: Choices | Labels) -> Tensor:
    """Log-ratios [B], or where there is no reference log-probabilities; their means where the method takes those."""
    ratios = logprobs - batch.ref_logprobs.to(logprobs.device)
    return ratios / lengths if config.by_token else ratios


def _rewards(config: DirectConfig, compared: Tensor) -> Tensor:
    """The implicit rewards [B]: beta times what is compared; of a method without beta, just that."""
    return config.beta * compared if "beta" in config.method.reads else compared
