"""Best-of-n by its exact law, and the frontier: the best score that a KL can buy (math.md §§2, 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from keel.functional.closed_form import best_of_n_kl, best_of_n_score, frontier
from keel.functional.direct import dpo_loss, ipo_loss
from keel.report.figures import Curve, Panel
from keel.seeds import Draws
from keel.verify import exact
from keel.verify.direct_checks import labelled, trained
from keel.verify.exact_checks import worlds
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.training import train_table, world_config
from keel.verify.worlds import World, bandit, response_logprobs, sequences

_EXACT = 1e-10
_SIZES = (2, 4, 8, 16, 32, 64, 128)
_BETAS = tuple(10.0 ** (power / 4) for power in range(-5, 7))  # from 0.056 to 32
_NOISES = (0.03, 0.1, 0.3, 1.0, 3.0)  # standard deviations, in the logits
_RANDOM = 10  # policies for each


def best_of_n() -> Finding:
    """The law F(y)^n - F(y-)^n against all ways to draw, and `functional.closed_form` against the law."""
    bounds, rows = [], []
    even = bandit(spread=0.0)  # all ways to draw are as probable, so that a plain mean over them is exact
    for n in (2, 3):
        off = float((best_of_n_probs(bandit(), n) - _by_drawing(bandit(), n)).abs().max())
        bounds.append(Bound(f"law less all draws, n = {n}", off, high=_EXACT))
        fours = even.rewards[:, torch.cartesian_prod(*(torch.arange(8),) * 4)].flatten(0, 1)
        score = float((best_of_n_probs(even, n) * even.rewards).sum(dim=1).mean())
        off = abs(best_of_n_score(fours, n) - score)
        bounds.append(Bound(f"score less best_of_n_score of all draws of 4, n = {n}", off, high=_EXACT))
    for world in worlds():
        for n in (2, 8, 64):
            distance = _kl(best_of_n_probs(world, n), response_logprobs(world.tree, world.ref_logits))
            bounds.append(Bound(f"KL / bound, n = {n}, {world.name}", float(distance.max()) / best_of_n_kl(n), high=1))
            rows.append((world.name, str(n), f"{float(distance.mean()):.4f}", f"{best_of_n_kl(n):.4f}"))
    many = torch.full((1, 100_000), 1e-5, dtype=torch.float64)
    off = float(_kl(_best_law(many, torch.arange(100_000.0)[None], 16), many.log())) - best_of_n_kl(16)
    bounds.append(Bound("KL less bound, n = 16, 100,000 equals", abs(off), high=1e-3))
    header = ("world", "n", "KL", "log n − (n − 1)/n")
    return Finding(tuple(bounds), tables=(Table("The KL of best-of-n, and its bound", header, tuple(rows)),))


def best_of_n_probs(world: World, n: int) -> Tensor:
    """The law of the best of n draws from the reference, [P, N]; no two rewards of a prompt are equal."""
    return _best_law(response_logprobs(world.tree, world.ref_logits).exp(), world.rewards, n)


def _best_law(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    order = rewards.argsort(dim=1)
    below = torch.cat([torch.zeros_like(probs[:, :1]), probs.gather(1, order).cumsum(dim=1)], dim=1)
    return torch.zeros_like(probs).scatter(1, order, (below**n).diff(dim=1))


def _by_drawing(world: World, n: int) -> Tensor:
    """The same law as the sum over all ways to draw n responses."""
    probs = response_logprobs(world.tree, world.ref_logits).exp()
    law = torch.zeros_like(probs)
    for prompt, draw in product(range(len(probs)), product(range(probs.shape[1]), repeat=n)):
        best = max(draw, key=world.rewards[prompt].tolist().__getitem__)
        law[prompt, best] += probs[prompt, list(draw)].prod()
    return law


def on_the_frontier() -> Finding:
    """How far optima are from the frontier, and how near to it any other policy comes."""
    bounds, rows = [], []
    places: dict[str, list[tuple[float, float]]] = {}
    for world, name in ((bandit(spread=0.0), "even bandit"), (sequences("structured"), "structured")):
        others = {
            "best-of-n": [best_of_n_probs(world, n) for n in _SIZES],
            "random": list(_random(world)),
            "trained": list(_trained(world)),
        }
        places = {"optimum": [_place(world, exact.optimal_logprobs(world, beta).exp()) for beta in _BETAS]} | {
            family: [_place(world, probs) for probs in policies] for family, policies in others.items()
        }
        below = {family: [_bound(world, kl) - score for kl, score in found] for family, found in places.items()}
        bounds.append(Bound(f"π* off the frontier, {name}", max(map(abs, below["optimum"])), high=_EXACT))
        for family in others:
            bounds.append(Bound(f"{family}: least below it, {name}", min(below[family]), low=-_EXACT))
            rows.append(
                (name, family, str(len(below[family])), f"{min(below[family]):.2g}", f"{max(below[family]):.2g}")
            )
    header = ("world", "policies", "how many", "least below", "most below")
    return Finding(
        tuple(bounds), tables=(Table("Below the frontier", header, tuple(rows)),), panels=(_picture(places),)
    )


def best_score(world: World, kl: float) -> float:
    """The highest mean score at a mean KL: min over beta of beta kl + mean beta log Z, where pi*_beta has that KL."""
    low, high = math.log(1e-3), math.log(1e6)
    for _ in range(30):
        middle = (low + high) / 2
        optimum = exact.optimal_logprobs(world, math.exp(middle))
        distance = float(exact.kl(optimum, response_logprobs(world.tree, world.ref_logits)).mean())
        low, high = (middle, high) if distance > kl else (low, middle)
    beta = math.exp((low + high) / 2)
    return beta * kl + float(exact.optimal_value(world, beta).mean())


def _bound(world: World, kl: float) -> float:
    """By `closed_form.frontier` where all responses are equally probable, as it takes samples to be."""
    even = not bool(world.ref_logits.any())
    return frontier(world.rewards, kl).bound if even else best_score(world, kl)


def _place(world: World, probs: Tensor) -> tuple[float, float]:
    """KL and score of a policy [P, N], means over prompts."""
    distance = _kl(probs, response_logprobs(world.tree, world.ref_logits))
    return float(distance.mean()), float((probs * world.rewards).sum(dim=1).mean())


def _random(world: World) -> Iterable[Tensor]:
    """Around the reference and around an optimum."""
    draws = Draws(0, "verify frontier")
    for noise, number in product(_NOISES, range(_RANDOM)):
        centre = exact.optimal_logits(world, 0.3) if number % 2 else world.ref_logits
        shift = draws.generator(f"noise {noise:g}", sample=number).standard_normal(tuple(centre.shape))
        yield response_logprobs(world.tree, centre + noise * torch.from_numpy(shift)).exp()


def _trained(world: World) -> Iterable[Tensor]:
    """By a few iterations of the stage, and to the end by direct methods that aim elsewhere."""
    for iterations in (10, 40):
        config = world_config(
            world, beta=0.3, iterations=iterations, lr=0.2, critic="none", advantage={"kind": "rloo"}, per_prompt=4
        )
        yield response_logprobs(world.tree, train_table(world, config, seed=0).logits).exp()
    yield trained(world, labelled(world), partial(ipo_loss, beta=0.1), 0.1).exp()
    yield trained(world, labelled(world), partial(dpo_loss, beta=0.3, label_smoothing=0.1), 0.3).exp()


def _kl(probs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL [P] of laws in which some responses may have no probability left."""
    return (torch.xlogy(probs, probs) - probs * ref_logprobs).sum(dim=1)


def _picture(places: Mapping[str, list[tuple[float, float]]]) -> Panel:
    points = {"best-of-n": "o", "random": ".", "trained": "x"}
    return Panel(
        "What a KL can buy",
        "Mean score against KL (nats a response, square-root scale) in the structured world. The line is π* from β = "
        "32 to 0.06, and nothing lies above it; best-of-n is for n = 2 to 128.",
        [
            _curve(sorted(places["optimum"]), label="π*"),
            *(_curve(places[family], style="", marker=marker, label=family) for family, marker in points.items()),
        ],
        x_label="KL to the reference",
        sqrt_x=True,
    )


def _curve(places: Sequence[tuple[float, float]], label: str, style: str = "solid", marker: str = "") -> Curve:
    return Curve([kl for kl, _ in places], [score for _, score in places], style=style, marker=marker, label=label)


CHECKS = (
    Check(
        "best-of-n",
        Group.PREFERENCES,
        "Best-of-n has the law F(y)^n − F(y−)^n, whose KL is at most log n − (n − 1)/n, and just that among many "
        "responses of which none stands out.",
        Level.DEFAULT,
        best_of_n,
    ),
    Check(
        "frontier",
        Group.PREFERENCES,
        "Every π* lies on the frontier of score and KL, and no other policy above it.",
        Level.DEFAULT,
        on_the_frontier,
    ),
)
