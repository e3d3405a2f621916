"""What lies under the padding must not matter to any function that takes a mask, forward or backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from keel.config.estimators import ESTIMATORS
from keel.functional import advantages
from keel.functional.kl import sequence_k2_term, token_k2_term, token_k3_term
from keel.functional.masked import masked_mean, masked_sum, masked_var, whiten
from keel.functional.policy import (
    approx_kl_to_old,
    clipped_policy_loss,
    clipped_value_loss,
    policy_gradient_loss,
    policy_ratio,
)
from keel.functional.preference import plackett_luce_loss
from keel.functional.rewards import shape_rewards

WIDTH = 4
JUNK = [math.nan, math.inf, -math.inf, 1.0, -1e30, 0.0]


def policy_loss(a: Tensor, b: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return clipped_policy_loss(a, b, c, mask, clip_low=0.2, clip_high=0.2, denominator=3).loss


def value_loss(a: Tensor, b: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return clipped_value_loss(a, b, c, mask, clip_range=0.2, denominator=3)


def shaped(a: Tensor, b: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return shape_rewards(c[:, 0], a, mask, b[:, 0] > 0, kl_coef=0.1, eos_penalty=1.0)


def estimate(name: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The estimator of that name; all responses are of one prompt, of which there are two or more."""

    def run(a: Tensor, b: Tensor, c: Tensor, mask: Tensor) -> Tensor:
        two = [torch.cat([part, part]) for part in (a, b, mask)]
        known = {"values": two[1], "group": torch.zeros(len(two[0])), "gamma": 0.9, "lam": 0.8, "n": 2}
        result: Tensor = getattr(advantages, name)(
            rewards=two[0], response_mask=two[2], **{key: known[key] for key in ESTIMATORS[name].reads}
        )
        return result

    return run


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "masked_sum": lambda a, b, c, mask: masked_sum(a, mask),
    "masked_mean": lambda a, b, c, mask: masked_mean(a, mask),
    "masked_var": lambda a, b, c, mask: masked_var(a, mask),
    "whiten": lambda a, b, c, mask: whiten(a, mask),
    **{name: estimate(name) for name in ESTIMATORS},
    "shape_rewards": shaped,
    "policy_gradient_loss": lambda a, b, c, mask: policy_gradient_loss(a, b, mask, denominator=3),
    "sequence_ratio": lambda a, b, c, mask: policy_ratio(a, b, mask, "sequence"),
    "gspo_ratio": lambda a, b, c, mask: policy_ratio(a, b, mask, "gspo"),
    "sequence_k2": lambda a, b, c, mask: sequence_k2_term(a, b, torch.exp(c), mask, torch.zeros(len(a))),
    "token_k2": lambda a, b, c, mask: token_k2_term(a, b, c, mask),
    "token_k3": lambda a, b, c, mask: token_k3_term(a, b, c, mask),
    "clipped_policy_loss": policy_loss,
    "clipped_value_loss": value_loss,
    "approx_kl_to_old": lambda a, b, c, mask: approx_kl_to_old(a, b, mask),
    "plackett_luce_loss": lambda a, b, c, mask: plackett_luce_loss(a, torch.arange(WIDTH).expand_as(a) // 2, mask),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, WIDTH), min_size=1, max_size=3),
    junk=st.lists(st.sampled_from(JUNK), min_size=3, max_size=3),
)
def test_padding_content_does_not_matter(name: str, lengths: list[int], junk: list[float]) -> None:
    mask = torch.arange(WIDTH) < torch.tensor(lengths)[:, None]
    fields = torch.randn(3, len(lengths), WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for fill in ([0.0, 0.0, 0.0], junk):
        a, b, c = (field.masked_fill(~mask, value) for field, value in zip(fields, fill, strict=True))
        output = FUNCTIONS[name](a.requires_grad_(), b, c, mask)
        assert output.isfinite().all()
        if output.requires_grad:
            results.append((output, *torch.autograd.grad(output.sum(), a)))
        else:
            results.append((output,))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
