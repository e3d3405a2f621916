"""The hard constraint: dual ascent on the leash's price meets E[KL] = delta, exactly known."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from keel.functional.kl import dual_kl_coef
from keel.verify import exact
from keel.verify.result import Bound, Check, Finding, Group, Level
from keel.verify.training import train_table, world_config
from keel.verify.worlds import World, bandit, sequences

LIMIT = 0.5  # nats a response, mean over prompts
MISS = 0.01  # of the limit
_STEPS = 400


def in_expectation() -> Finding:
    """Exact gradients of J at the price of the moment, which rises and falls with the exact KL."""
    bounds = []
    for world in (bandit(), sequences("structured")):
        logits, price = _ascend_both(world)
        gap = float(exact.gap(world, logits, price).max())
        bounds += [_meets(world, logits), Bound(f"worst gap at the final β, {world.name}", gap, high=1e-5)]
    return Finding(tuple(bounds))


def _ascend_both(world: World) -> tuple[Tensor, float]:
    """Steps on the policy (as the exact ascent takes them) and on the price in turn: the table, and the price."""
    logits, price = world.ref_logits.clone(), 1.0
    for _ in range(_STEPS):
        met = exact.visits(world, logits)[..., None] * logits.softmax(dim=-1)
        logits += 0.5 / price * exact.gradient(world, logits, price) / met
        kl = float(exact.kl_to_reference(world, logits).mean())
        price = dual_kl_coef(price, kl, limit=LIMIT, lr=0.1, minimum=1e-4)
    return logits, price


def sampled(seed: int) -> Finding:
    """The stage with `kl.kind: constraint`: it sees sampled KLs alone; the exact one is measured at the end.

    The step stays constant, for where the policy no longer follows, the price runs away.
    """
    world = bandit()
    config = world_config(
        world,
        beta=0.6,
        iterations=300,
        lr=0.05,
        advantage={"kind": "rloo"},
        rollout_batch=2048,
        per_prompt=8,
        kl={"kind": "constraint", "target": LIMIT, "dual_lr": 0.02},
        update={"schedule": "constant"},
    )
    return Finding((_meets(world, train_table(world, config, seed=seed).logits),))


def _meets(world: World, logits: Tensor) -> Bound:
    kl = float(exact.kl_to_reference(world, logits).mean())
    return Bound(f"E[KL] / δ, {world.name}", kl / LIMIT, low=1 - MISS, high=1 + MISS)


CHECKS = (
    Check(
        "constraint",
        Group.DIRECT,
        f"Dual ascent holds E[KL] to {LIMIT:g} nats in expectation, at the optimum for the price it finds.",
        Level.QUICK,
        in_expectation,
    ),
    *(
        Check(
            f"constraint-sampled-{seed}",
            Group.DIRECT,
            f"`kl.kind: constraint` holds the exact E[KL] to {LIMIT:g} nats from sampled ones, seed {seed}.",
            Level.FULL if seed else Level.DEFAULT,
            partial(sampled, seed),
        )
        for seed in range(3)
    ),
)
