"""What the likelihoods of preferences recover of the reward behind the labels, given all labels (math.md §1)."""

from __future__ import annotations

from functools import partial
from itertools import combinations, permutations

import torch
from torch import Tensor

from keel.functional.preference import bradley_terry_loss, plackett_luce_loss
from keel.seeds import Draws
from keel.verify.exact_checks import worlds
from keel.verify.fitting import PairLoss, all_labels, curvature, expected_loss, minimise
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.worlds import World, bandit, response_logprobs, sequences

CLOSE = 1e-6
_FLIPS = 0.1
_ROUNDS = 20  # in each, all responses are cut into sets of three


def bradley_terry() -> Finding:
    """The largest error of the recovered reward over all responses, less what is free in it."""
    bounds = [
        Bound(f"largest error, {world.name}", recovery_error(world, bradley_terry_loss), high=CLOSE)
        for world in worlds()
    ]
    hot = recovery_error(bandit(), bradley_terry_loss, temperature=2.0)
    return Finding((*bounds, Bound("from r / τ at τ = 2, bandit", hot, high=CLOSE)))


def recovery_error(world: World, loss: PairLoss, *, temperature: float = 1.0, flips: float = 0.0) -> float:
    """How far the reward that minimises `loss` on all pairs is from r / temperature, at most, up to b(x)."""
    as_often = torch.full_like(world.rewards, 1 / world.rewards.shape[1])
    labels = all_labels(as_often.log(), world.rewards, temperature=temperature, flips=flips)
    found = minimise(partial(expected_loss, labels, loss), curvature(labels))
    return _largest_error(world, found, world.rewards / temperature)


def plackett_luce() -> Finding:
    """The largest error of the reward recovered from rankings of three."""
    all_sets = torch.tensor(list(combinations(range(8), 3)))
    world = sequences("structured")
    count = len(world.tree.tokens)
    draws = Draws(0, "verify rankings")
    rounds = [torch.from_numpy(draws.permutation("sets", count, iteration=number)) for number in range(_ROUNDS)]
    some_sets = torch.cat([order[: count // 3 * 3].reshape(-1, 3) for order in rounds])
    return Finding(
        (
            Bound("largest error, bandit, all sets", ranking_error(bandit(), all_sets), high=CLOSE),
            Bound(f"largest error, structured, {len(some_sets)} sets", ranking_error(world, some_sets), high=CLOSE),
        )
    )


def ranking_error(world: World, sets: Tensor) -> float:
    """As `recovery_error`, from all orders of each set of responses, int64 [M, K], all sets being as probable."""
    rankings = torch.cat([sets[:, list(order)] for order in permutations(range(sets.shape[1]))])
    places = torch.arange(sets.shape[1])  # the best comes first
    probs = ranking_probability(world.rewards[:, rankings])

    def loss(values: Tensor) -> Tensor:
        ordered = values[:, rankings].flatten(0, 1)
        losses = plackett_luce_loss(ordered, places.expand(ordered.shape), torch.ones_like(ordered, dtype=torch.bool))
        return (probs.flatten() * losses).sum() / len(sets)

    found = minimise(loss, torch.full_like(world.rewards, 1 / world.rewards.shape[1]))
    return _largest_error(world, found, world.rewards)


def ranking_probability(scores: Tensor) -> Tensor:
    """That the ranking [..., K], best first, is drawn: one after the other without replacement, by exp(score)."""
    weights = scores.exp()
    places = range(scores.shape[-1])
    return torch.stack([weights[..., k] / weights[..., k:].sum(dim=-1) for k in places]).prod(dim=0)


def _largest_error(world: World, found: Tensor, true: Tensor) -> float:
    """Up to a b(x), `true` having mean 0 under the reference."""
    ref = response_logprobs(world.tree, world.ref_logits).exp()
    return float((found - (ref * found).sum(dim=1, keepdim=True) - true).abs().max())


def noise() -> Finding:
    """A share of the labels is wrong: what each loss makes of a true difference of 2, and of all pairs."""
    learnt = {
        "noise likelihood": learnt_difference(2.0, partial(bradley_terry_loss, flip_probability=_FLIPS)),
        "no word of noise": learnt_difference(2.0, bradley_terry_loss),
        "label smoothing": learnt_difference(2.0, partial(bradley_terry_loss, label_smoothing=_FLIPS)),
    }
    rows = tuple((name, f"{difference:.4f}") for name, difference in learnt.items())
    likelihood = partial(bradley_terry_loss, flip_probability=_FLIPS)
    everywhere = [
        (world.name, recovery_error(world, likelihood, flips=_FLIPS)) for world in (bandit(), sequences("structured"))
    ]
    return Finding(
        (
            Bound("noise likelihood less Δ = 2", abs(learnt["noise likelihood"] - 2), high=CLOSE),
            Bound("label smoothing learns", learnt["label smoothing"], low=1.06, high=1.07),
            *(Bound(f"largest error of r, {name}", error, high=CLOSE) for name, error in everywhere),
        ),
        tables=(Table(f"Learnt from Δ = 2 with {_FLIPS:.0%} of labels flipped", ("loss", "Δ"), rows),),
    )


def learnt_difference(true: float, loss: PairLoss) -> float:
    """The difference of two scores that is learnt from the flipped labels of one pair."""
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    labels = all_labels(half.log(), torch.tensor([[true, 0.0]], dtype=torch.float64), flips=_FLIPS)
    found = minimise(partial(expected_loss, labels, loss), half)
    return float(found[0, 0] - found[0, 1])


CHECKS = (
    Check(
        "bradley-terry",
        Group.PREFERENCES,
        "Bradley–Terry on all pairs recovers r up to a b(x), over the annotator's temperature.",
        Level.DEFAULT,
        bradley_terry,
    ),
    Check(
        "plackett-luce",
        Group.PREFERENCES,
        "Plackett–Luce on all rankings of sets of three recovers r up to a b(x).",
        Level.DEFAULT,
        plackett_luce,
    ),
    Check(
        "label-noise",
        Group.PREFERENCES,
        "From labels of which a tenth is flipped the noise likelihood recovers r, where label smoothing shrinks it.",
        Level.DEFAULT,
        noise,
    ),
)
