"""Estimators of the KL and of the policy gradient whose means are exact, by enumeration (math.md §§3, 5, 6).

The policies at which they are measured lie on the way from the reference (0) to the optimum (1) in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from keel.functional import advantages as estimate
from keel.functional.kl import k1, k2, k3, sequence_k2_term, token_k2_term, token_k3_term
from keel.functional.policy import Ratio, clipped_policy_loss
from keel.seeds import Draws
from keel.verify import exact
from keel.verify.enumeration import Enumeration, all_groups
from keel.verify.exact_checks import worlds
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.worlds import World, bandit, sequences

BETA = 0.5
EXACT = 1e-10
WAYS = {"away": -0.25, "reference": 0.0, "half-way": 0.5, "optimum": 1.0}


def on_the_way(world: World, way: float) -> Enumeration:
    """Everything of the policy whose logits are so far from the reference's to the optimum's."""
    start = world.ref_logits.log_softmax(dim=-1)
    return Enumeration(world, start + way * (exact.optimal_logits(world, BETA) - start), BETA)


def first_prompt(world: World) -> World:
    """The world with one prompt, small enough to list all pairs of responses."""
    return replace(world, prompts=world.prompts[:1], ref_logits=world.ref_logits[:1], rewards=world.rewards[:1])


def kl_estimators() -> Finding:
    """The means of k1, k2 and k3 of whole responses, and of k3 summed over tokens, against the exact KL."""
    largest = dict.fromkeys(("k1", "k3", "k3 by token"), 0.0)
    off, rows = [], []
    for world in worlds():
        for name in ("away", "half-way", "optimum"):
            space = on_the_way(world, WAYS[name])
            true = float(exact.kl_to_reference(world, space.logits).sum())
            pair = space.logprobs.sum(dim=1), space.ref_logprobs.sum(dim=1)
            by_token = k3(space.logprobs, space.ref_logprobs).sum(dim=1)
            for kind, values in zip(largest, (k1(*pair), k3(*pair), by_token), strict=True):
                largest[kind] = max(largest[kind], abs(float(space.probs @ values) - true))
            off.append(float(space.probs @ k2(*pair)) / true - 1)
            rows.append((world.name, name, f"{true / world.num_prompts:.4f}", f"{off[-1]:+.1%}"))
    return Finding(
        (
            *(Bound(f"E[{kind}] − KL", error, high=EXACT) for kind, error in largest.items()),
            Bound("E[k2] / KL − 1, the smallest", min(abs(share) for share in off), low=1e-3),
        ),
        tables=(Table("The mean of k2", ("world", "policy", "KL", "E[k2] is off by"), tuple(rows)),),
    )


def means() -> Finding:
    """How far the mean of each estimator is from the gradient of J, at the policy where that is most."""
    largest: dict[str, float] = {}
    for way in WAYS.values():
        space = on_the_way(sequences("structured"), way)
        true = exact.gradient(space.world, space.logits, BETA)
        for name, mean in unbiased(space).items():
            largest[name] = max(largest.get(name, 0.0), float((mean - true).norm()))
    return Finding(tuple(Bound(name, error, high=EXACT) for name, error in largest.items()))


def unbiased(space: Enumeration) -> Mapping[str, Tensor]:
    """The mean gradient [P, S, V] of every estimator that needs no group and claims to have that of J."""
    right, wrong = space.values(space.state_values), space.values(wrong_critic(space))
    advantages = {
        "reinforce": space.advantages(estimate.reinforce),
        "reward_to_go": space.advantages(estimate.reward_to_go),
        "sequence, wrong V": space.advantages(estimate.sequence, values=wrong),
        "monte_carlo, wrong V": space.advantages(estimate.monte_carlo, values=wrong),
        "gae λ = 1, wrong V": space.advantages(estimate.gae, values=wrong, lam=1.0),
        "gae λ = 0.95, exact V": space.advantages(estimate.gae, values=right, lam=0.95),
        "gae λ = 0.5, exact V": space.advantages(estimate.gae, values=right, lam=0.5),
        "n_step 2, exact V": space.advantages(estimate.n_step, values=right, n=2),
        "td, exact V": space.advantages(estimate.td, values=right),
    }
    return {
        **{name: space.mean(values) for name, values in advantages.items()},
        "clip, token ratio": clipped(space, advantages["td, exact V"], "token"),
        "clip, sequence ratio": clipped(space, advantages["sequence, wrong V"], "sequence"),
        "sequence_k2 in the loss": leash_in_loss(space, "sequence_k2"),
    }


def wrong_critic(space: Enumeration) -> Tensor:
    """[P, S], off by a draw of standard deviation 1 in every state."""
    noise = Draws(0, "verify estimators").generator("wrong critic").standard_normal(tuple(space.state_values.shape))
    return space.state_values + torch.from_numpy(noise)


def clipped(space: Enumeration, advantages: Tensor, ratio: Ratio) -> Tensor:
    """The mean gradient of the clipped loss on samples of this very policy; a whole response's ratio counts once."""
    weights = space.probs[:, None] / (1 if ratio == "token" else space.lengths)
    return space.gradient(
        lambda logprobs: (
            clipped_policy_loss(
                logprobs,
                space.logprobs,
                advantages,
                space.mask,
                clip_low=0.2,
                clip_high=0.2,
                ratio=ratio,
                weights=weights.expand(space.mask.shape),
                denominator=1.0,
            ).loss
        )
    )


def leash_in_loss(space: Enumeration, kind: str) -> Tensor:
    """The mean gradient of REINFORCE on the scores alone and the KL as a term of the loss."""
    scores_alone = replace(space, beta=0.0).rewards

    def term(logprobs: Tensor) -> Tensor:
        ratio = (logprobs - space.logprobs).exp()
        if kind == "sequence_k2":
            any_baseline = torch.full_like(space.scores, 0.3)
            terms = sequence_k2_term(logprobs, space.ref_logprobs, ratio, space.mask, any_baseline)
        elif kind == "k1":
            terms = k1(logprobs, space.ref_logprobs)
        else:
            token_term = {"token_k2": token_k2_term, "token_k3": token_k3_term}[kind]
            terms = token_term(logprobs, space.ref_logprobs, ratio, space.mask)
        return space.beta * (space.probs[:, None] * terms).sum()

    return space.mean(estimate.reinforce(scores_alone, space.mask)) + space.gradient(term)


def group_means() -> Finding:
    """The mean over all groups of n responses; Dr. GRPO's against the share of the gradient that it should have."""
    bounds = []
    for world, size in ((bandit(), 2), (bandit(), 3), (first_prompt(sequences("structured")), 2)):
        off = {"rloo": 0.0, "dr_grpo": 0.0}
        for way in WAYS.values():
            space = on_the_way(world, way)
            groups = all_groups(space, size)
            true = exact.gradient(world, space.logits, BETA)
            for name, share in (("rloo", 1.0), ("dr_grpo", 1 - 1 / size)):
                mean = groups.mean(groups.advantages(getattr(estimate, name)))
                off[name] = max(off[name], float((mean - share * true).norm()))
        where = f"n = {size}, {world.name}"
        bounds.append(Bound(f"rloo, {where}", off["rloo"], high=EXACT))
        bounds.append(Bound(f"dr_grpo less (1 − 1/n) of ∇J, {where}", off["dr_grpo"], high=EXACT))
    return Finding(tuple(bounds))


CHECKS = (
    Check(
        "kl-estimators",
        Group.ESTIMATORS,
        "The mean of k1 and of k3 over all responses is the KL, that of k2 is not.",
        Level.QUICK,
        kl_estimators,
    ),
    Check(
        "gradient-means",
        Group.ESTIMATORS,
        "The mean of every unbiased estimator over all responses is ∇J: with any V where V is only a baseline, with "
        "an exact V where it stands in for rewards.",
        Level.QUICK,
        means,
    ),
    Check(
        "gradient-means-groups",
        Group.ESTIMATORS,
        "Over all groups of n responses the mean of RLOO is ∇J, and that of Dr. GRPO (1 − 1/n) of it.",
        Level.QUICK,
        group_means,
    ),
)
