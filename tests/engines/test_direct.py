"""A batch's loss against one written out naively from transformers' own logits, a pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from keel.batching import pad_rows
from keel.config.direct import DirectConfig
from keel.engines.direct import choices_loss, labels_loss
from keel.records import Choices, Labels
from tests.engines.helpers import exact_logprobs, tiny_policy
from tests.worlds import random_rows

ROWS = random_rows([(3, 5), (3, 2), (4, 4), (4, 7), (2, 1)])
PAIRS = [(0, 1, 1.0), (1, 0, 0.5), (2, 3, 2.0)]
REFERENCE = [-20.0, -11.5, -16.0, -25.0, -4.0]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


# (settings, the loss of a pair from log p and the reference's of both, and their lengths: w the chosen, x the other)
NAIVE: dict[str, tuple[dict[str, Any], Callable[..., float]]] = {
    "dpo": ({"beta": 0.3}, lambda w, x, rw, rx, nw, nx: -log_sigmoid(0.3 * (w - rw - x + rx))),
    "dpo by length": (
        {"beta": 0.3, "length_normalised": True},
        lambda w, x, rw, rx, nw, nx: -log_sigmoid(0.3 * ((w - rw) / nw - (x - rx) / nx)),
    ),
    "dpo with the likelihood": (
        {"beta": 0.3, "sft_coef": 0.7},
        lambda w, x, rw, rx, nw, nx: -log_sigmoid(0.3 * (w - rw - x + rx)) - 0.7 * w / nw,
    ),
    "ipo": ({"kind": "ipo", "beta": 0.3}, lambda w, x, rw, rx, nw, nx: (w - rw - x + rx - 1 / 0.6) ** 2),
    "hinge": ({"kind": "hinge", "beta": 0.3}, lambda w, x, rw, rx, nw, nx: max(0.0, 1 - 0.3 * (w - rw - x + rx))),
    "orpo": (
        {"kind": "orpo", "lam": 0.4},
        lambda w, x, rw, rx, nw, nx: -w / nw - 0.4 * log_sigmoid(odds(w / nw) - odds(x / nx)),
    ),
    "simpo": (
        {"kind": "simpo", "beta": 1.5, "gamma": 0.2},
        lambda w, x, rw, rx, nw, nx: -log_sigmoid(1.5 * (w / nw - x / nx) - 0.2),
    ),
}


@pytest.mark.parametrize("name", NAIVE)
def test_the_loss_of_a_batch_of_pairs(name: str) -> None:
    settings, naive = NAIVE[name]
    config = DirectConfig(**settings)
    policy = tiny_policy()
    sums = [float(exact_logprobs(policy.backbone, row, 1.0).sum()) for row in ROWS]
    lengths = [row.response_length for row in ROWS]
    reference = REFERENCE if config.method.reference else [0.0] * len(ROWS)
    batch = Choices(
        rows=pad_rows(ROWS),
        ref_logprobs=torch.tensor(reference),
        chosen=torch.tensor([pair[0] for pair in PAIRS]),
        rejected=torch.tensor([pair[1] for pair in PAIRS]),
        weights=torch.tensor([pair[2] for pair in PAIRS]),
    )
    losses = [
        weight * naive(sums[w], sums[x], reference[w], reference[x], lengths[w], lengths[x]) for w, x, weight in PAIRS
    ]
    loss, tally = choices_loss(config)(policy, batch, 7.0)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 7, rel=1e-5)
    means = tally.means()
    assert means["direct/loss"] == pytest.approx(sum(losses) / 3.5, rel=1e-5)
    likelihood = sum(weight * sums[w] for w, _, weight in PAIRS) / 3.5
    assert means["direct/logprobs/chosen"] == pytest.approx(likelihood, rel=1e-5)
    assert means["direct/margin"] == pytest.approx(
        means["direct/reward/chosen"] - means["direct/reward/rejected"], abs=1e-6
    )
    if name == "dpo":
        margins = [0.3 * (sums[w] - reference[w] - sums[x] + reference[x]) for w, x, _ in PAIRS]
        weights = [weight for _, _, weight in PAIRS]
        right = sum(weight for margin, weight in zip(margins, weights, strict=True) if margin > 0) / 3.5
        assert means["direct/accuracy"] == pytest.approx(right)
        weighted = sum(margin * weight for margin, weight in zip(margins, weights, strict=True)) / 3.5
        assert means["direct/margin"] == pytest.approx(weighted, rel=1e-5)


def test_the_loss_of_a_batch_of_labels() -> None:
    config = DirectConfig(kind="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    policy = tiny_policy()
    labels = [(0, True, 1.0), (1, False, 0.5), (1, True, 0.25), (3, False, 2.0)]
    batch = Labels(
        rows=pad_rows(ROWS),
        ref_logprobs=torch.tensor(REFERENCE),
        judged=torch.tensor([row for row, _, _ in labels]),
        desirable=torch.tensor([accepted for _, accepted, _ in labels]),
        weights=torch.tensor([weight for _, _, weight in labels]),
        reference_point=torch.tensor(1.25),
    )
    ratios = [
        float(exact_logprobs(policy.backbone, row, 1.0).sum()) - r for row, r in zip(ROWS, REFERENCE, strict=True)
    ]
    total = right = 0.0
    for row, accepted, weight in labels:
        value = 1 / (1 + math.exp(-0.3 * (ratios[row] - 1.25) * (1 if accepted else -1)))
        total += weight * (1.5 if accepted else 0.5) * (1 - value)
        right += weight * ((ratios[row] > 1.25) == accepted)
    loss, tally = labels_loss(config)(policy, batch, 7.0)
    assert float(loss.detach()) == pytest.approx(total / 7, rel=1e-5)
    means = tally.means()
    assert means["direct/loss"] == pytest.approx(total / 3.75, rel=1e-5)
    assert means["direct/accuracy"] == pytest.approx(right / 3.75)
    assert means["direct/reference_point"] == pytest.approx(1.25)
    assert means["direct/reward/chosen"] == pytest.approx(0.3 * (ratios[0] + 0.25 * ratios[1]) / 1.25, rel=1e-5)
