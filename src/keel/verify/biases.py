"""Estimators of the policy gradient whose means are not that of J: how far off they are, by enumeration.

What counts in the end is whether the mean vanishes at the optimum: where it does not, training settles elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from keel.functional import advantages as estimate
from keel.functional.masked import Moments, whiten
from keel.verify import exact
from keel.verify.enumeration import Enumeration, all_groups
from keel.verify.estimators import BETA, EXACT, WAYS, first_prompt, leash_in_loss, on_the_way, wrong_critic
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.worlds import sequences

_SEEN = 1e-3  # of the gradient's length: a bias below it would not count as one


def biases() -> Finding:
    """Length and direction of each mean half-way to the optimum, and what is left of it there."""
    half, best = (on_the_way(sequences("structured"), WAYS[name]) for name in ("half-way", "optimum"))
    true = exact.gradient(half.world, half.logits, BETA)
    there = biased(best)
    rows, bounds = [], []
    for name, mean in biased(half).items():
        goal = true if len(mean) == len(true) else true[:1]
        bounds.append(Bound(f"{name}: bias / ‖∇J‖", float((mean - goal).norm() / goal.norm()), low=_SEEN))
        rows.append((name, *_against(mean, goal), f"{float(there[name].norm() / len(there[name]) ** 0.5):.2g}"))
    header = ("estimator", "‖mean‖ / ‖∇J‖", "cosine to ∇J", "‖mean‖ at the optimum")
    bounds += _exceptions(half, best)
    return Finding(tuple(bounds), tables=(Table("The means of biased estimators, half-way", header, tuple(rows)),))


def biased(space: Enumeration) -> Mapping[str, Tensor]:
    """The mean gradients [P, S, V]; of GRPO for one prompt only."""
    wrong = space.values(wrong_critic(space))
    whole = space.advantages(estimate.reinforce)
    pairs = all_groups(_of_first_prompt(space), 2)
    return {
        "gae λ = 0.95, wrong V": space.mean(space.advantages(estimate.gae, values=wrong, lam=0.95)),
        "gae λ = 0.5, wrong V": space.mean(space.advantages(estimate.gae, values=wrong, lam=0.5)),
        "n_step 2, wrong V": space.mean(space.advantages(estimate.n_step, values=wrong, n=2)),
        "td, wrong V": space.mean(space.advantages(estimate.td, values=wrong)),
        "grpo, n = 2": pairs.mean(pairs.advantages(estimate.grpo)),
        "reinforce_pp, whitened": space.mean(whitened(space, space.advantages(estimate.reinforce_pp))),
        "sequence_mean, no baseline": space.mean(whole, weights=1 / space.lengths),
        "sequence_mean, exact V": space.mean(_exact_sequence(space), weights=1 / space.lengths),
        **{f"token_mean × E[T], n = {n}": token_mean(space, whole, n) for n in (2, 8, 64)},
        "token_k2 in the loss": leash_in_loss(space, "token_k2"),
        "token_k3 in the loss": leash_in_loss(space, "token_k3"),
        "k1 in the loss": leash_in_loss(space, "k1"),
    }


def whitened(space: Enumeration, advantages: Tensor) -> Tensor:
    """Whitened with the moments that the tokens of endlessly many responses have."""
    return whiten(advantages, space.mask, moments=token_moments(space, advantages))


def token_moments(space: Enumeration, values: Tensor) -> Moments:
    """Mean and variance of a number a token over the policy's responses."""
    shares = space.probs[:, None] * space.mask / (space.probs @ space.lengths)
    mean = float((shares * values).sum())
    return Moments(count=1.0, mean=mean, m2=float((shares * (values - mean).square()).sum()))


def token_mean(space: Enumeration, advantages: Tensor, n: int) -> Tensor:
    """The mean gradient of n responses to one prompt divided by their tokens, times the mean length E[T].

    The other n - 1 responses reach a response only through how long they are together.
    """
    prompts, longest = space.world.num_prompts, space.world.tree.longest
    lengths = space.lengths.long().reshape(prompts, -1)
    law = torch.zeros(prompts, longest + 1, dtype=space.probs.dtype)
    law.scatter_add_(1, lengths, space.probs.reshape(prompts, -1))
    weights = torch.zeros(prompts, longest + 1, dtype=space.probs.dtype)
    for prompt, own in enumerate(law.numpy()):
        others = np.ones(1)
        for _ in range(n - 1):
            others = np.convolve(others, own)
        for length in range(1, longest + 1):
            weights[prompt, length] = n * float((others / (length + np.arange(len(others)))).sum())
    mean_length = law @ torch.arange(longest + 1, dtype=law.dtype)
    return space.mean(advantages, weights=(weights * mean_length[:, None]).gather(1, lengths).reshape(-1, 1))


def _exceptions(half: Enumeration, best: Enumeration) -> list[Bound]:
    """What is exact in spite of a bias."""
    to_go = estimate.reinforce_pp(half.rewards, half.mask)
    true = exact.gradient(half.world, half.logits, BETA)
    off = half.mean(whitened(half, to_go)) - true / (token_moments(half, to_go).var + 1e-8) ** 0.5
    free = leash_in_loss(half, "k1") - exact.gradient(half.world, half.logits, 0.0)
    by_length = {n: (token_mean(half, estimate.reinforce(half.rewards, half.mask), n) - true).norm() for n in (8, 64)}
    at_best = best.mean(_exact_sequence(best), weights=1 / best.lengths)
    return [
        Bound("whitened less ∇J / σ", float(off.norm()), high=EXACT),
        Bound("k1 in the loss less ∇E[r]: it pulls not at all", float(free.norm()), high=EXACT),
        Bound("token_mean: bias at n = 64 / that at n = 8", float(by_length[64] / by_length[8]), high=0.15),
        Bound("sequence_mean with an exact V, at the optimum", float(at_best.norm()), high=EXACT),
    ]


def _exact_sequence(space: Enumeration) -> Tensor:
    return estimate.sequence(space.rewards, space.values(space.state_values), space.mask)


def _of_first_prompt(space: Enumeration) -> Enumeration:
    return Enumeration(first_prompt(space.world), space.logits[:1], space.beta)


def _against(mean: Tensor, goal: Tensor) -> tuple[str, str]:
    """Relative length and cosine, as words."""
    cosine = float((mean * goal).sum() / (mean.norm() * goal.norm()))
    return f"{float(mean.norm() / goal.norm()):.3f}", f"{cosine:.3f}"


CHECKS = (
    Check(
        "gradient-biases",
        Group.ESTIMATORS,
        "The other estimators are seen to be biased, by so much; whitening over all responses is a mere scale, the "
        "bias of token_mean falls as 1/n, and an exact V makes sequence_mean right at the optimum.",
        Level.QUICK,
        biases,
    ),
)
