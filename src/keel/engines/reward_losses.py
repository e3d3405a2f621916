"""The losses of the reward model beside Bradley-Terry's: on rankings, on ratings, on labels (math.md §1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keel.batching import to_device
from keel.engines.losses import Loss, add_pairs, device_of
from keel.functional.preference import accept_loss, ordinal_loss, plackett_luce_loss
from keel.models.thresholds import Thresholds
from keel.records import Rankings, Ratings
from keel.tally import Tally


def ranking_loss(module: nn.Module, batch: Rankings, denominator: float) -> tuple[Tensor, Tally]:
    """Plackett-Luce with ties, summed over rankings; the accuracy is on the pairs that they tell apart."""
    device = device_of(module)
    scores = module(to_device(batch.rows, device))
    losses = plackett_luce_loss(scores[batch.items.to(device)], batch.ranks.to(device), batch.mask.to(device))
    total = losses.sum()
    return total / denominator, _statistics(total, scores, batch)


def rating_loss(thresholds: Thresholds) -> Loss[Ratings]:
    """Ordinal regression, summed over ratings. The level that a score falls in is the median of those it gives."""

    def loss(module: nn.Module, batch: Ratings, denominator: float) -> tuple[Tensor, Tally]:
        device = device_of(module)
        scores = module(to_device(batch.rows, device))
        points, levels = thresholds.points, batch.levels.to(device)
        judged = scores[batch.items.to(device)] + points.offsets[batch.annotators.to(device)]
        total = ordinal_loss(judged, levels, points.cuts).sum()
        tally = _statistics(total, scores, batch)
        errors = ((judged[:, None] > points.cuts).sum(dim=1) - levels).abs()
        tally.add("reward/level_accuracy", float((errors == 0).sum()), batch.weight)
        tally.add("reward/level_error", float(errors.sum()), batch.weight)
        return total / denominator, tally

    return loss


def label_loss(thresholds: Thresholds) -> Loss[Ratings]:
    """Cross-entropy of acceptance, summed over labels: level 1 is accepted, level 0 is not."""

    def loss(module: nn.Module, batch: Ratings, denominator: float) -> tuple[Tensor, Tally]:
        device = device_of(module)
        scores = module(to_device(batch.rows, device))
        points, accepted = thresholds.points, batch.levels.to(device) == 1
        above = scores[batch.items.to(device)] + points.offsets[batch.annotators.to(device)] - points.cuts[0]
        total = accept_loss(above, accepted, 0.0).sum()
        tally = _statistics(total, scores, batch)
        tally.add("reward/level_accuracy", float(((above > 0) == accepted).sum()), batch.weight)
        tally.add("reward/accept_rate", float(torch.sigmoid(above.detach()).sum()), batch.weight)
        tally.add("reward/accepted", float(accepted.sum()), batch.weight)
        return total / denominator, tally

    return loss


def _statistics(total: Tensor, scores: Tensor, batch: Rankings | Ratings) -> Tally:
    """The loss, and how each two responses that the batch tells apart score."""
    tally = Tally()
    tally.add("reward/loss", float(total.detach()), batch.weight)
    if len(batch.pairs):
        better, worse = scores.detach()[batch.pairs.to(scores.device)].unbind(dim=1)
        add_pairs(tally, better - worse, torch.ones_like(better))
    return tally
