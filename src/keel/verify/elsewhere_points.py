"""Where those that aim elsewhere aim: each one's own fixed point, computed without the code that trains.

A method stands still where what it credits an action with, g(s, a) = E[coefficient of grad log pi | s, a], is the same
for every action of a state. Solved for pi that gives what is here, as log-probabilities of all responses [P, N].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from math import factorial, inf, prod

import torch
from torch import Tensor

from keel.verify import exact
from keel.verify.worlds import World, response_logprobs

_HALVINGS = 200  # of a bracket: to the last digit
_ROUNDS = 2000  # of a damped iteration

Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(Q [P, V], log pi_ref [P, V]) of a state -> log pi [P, V], and what the state is worth to those before it [P]."""


def token_k2(world: World, beta: float) -> Tensor:
    """pi(a|s) ~ pi_ref exp(Q(s, a) / beta), Q = E_pi[r | s, a]: no action answers for the KL that follows it."""

    def act(q: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (ref + q / beta).log_softmax(dim=-1)
        return logprobs, (logprobs.exp() * q).sum(dim=-1)

    return _backwards(world, act)


def token_k3(world: World, beta: float) -> Tensor:
    """pi(a|s) = beta pi_ref / (lambda(s) - Q(s, a)), Q = E_pi[r | s, a]: Q - beta (1 - pi_ref / pi) is constant."""

    def act(q: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
        best = q.amax(dim=-1, keepdim=True)
        # The sum falls in lambda; at best + beta pi_ref(best) its largest term is 1, at best + beta all sum to < 1.
        above = _root(lambda gap: 1 - (beta * ref.exp() / (gap + best - q)).sum(dim=-1, keepdim=True), best, beta)
        logprobs = (ref + torch.log(beta / (above + best - q))).log_softmax(dim=-1)
        return logprobs, (logprobs.exp() * q).sum(dim=-1)

    return _backwards(world, act)


def discounted(world: World, beta: float, gamma: float) -> Tensor:
    """pi(a|s) ~ pi_ref exp(Q / beta) with Q = r where a ends the response, else gamma beta log sum pi_ref exp(Q'/beta).

    A reward, and a leash, that is k tokens away counts gamma^k.
    """

    def act(q: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
        tilted = ref + q / beta
        return tilted.log_softmax(dim=-1), beta * tilted.logsumexp(dim=-1)

    return _backwards(world, act, gamma)


def entropy_bonus(world: World, beta: float, coef: float) -> Tensor:
    """pi(a|s) ~ (pi_ref^beta exp(Q))^(1 / (beta + coef)), Q(s, a) = E_pi[r - beta x the KL of what follows | s, a].

    The bonus is the entropy of the states met; its gradient is that of pi(.|s) alone, blind to the entropy that
    follows, so Q holds the later leash (it is paid in the reward) and not the later bonus.
    """

    def act(q: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = ((beta * ref + q) / (beta + coef)).log_softmax(dim=-1)
        return logprobs, (logprobs.exp() * (q - beta * (logprobs - ref))).sum(dim=-1)

    return _backwards(world, act)


def whitened_score(world: World, beta: float) -> Tensor:
    """pi* at beta sd(r), where sd is that of the scores of all prompts under this very policy.

    Prompts whose best scores differ keep it above 0; one prompt alone may collapse as in `grpo_large_groups`.
    """
    price = torch.tensor(beta, dtype=world.rewards.dtype)
    for _ in range(_ROUNDS):
        probs = exact.optimal_logprobs(world, float(price)).exp() / world.num_prompts
        mean = (probs * world.rewards).sum()
        price = beta * (probs * (world.rewards - mean).square()).sum().sqrt()
    return exact.optimal_logprobs(world, float(price))


def sequence_mean(world: World, beta: float) -> Tensor:
    """pi(y) = pi_ref exp((r - C T(y)) / beta), C such that it sums to 1: (r - beta log pi / pi_ref) / T is constant.

    Weights 1/T and no baseline: the shorter response, if it is good, is reinforced the more.
    """
    ref, lengths = response_logprobs(world.tree, world.ref_logits), world.tree.mask.sum(dim=1)
    spread = float(world.rewards.abs().max())

    def missing(constant: Tensor) -> Tensor:
        return -(ref + (world.rewards - (constant - spread) * lengths) / beta).logsumexp(dim=1, keepdim=True)

    constant = _root(missing, torch.zeros(world.num_prompts, 1, dtype=ref.dtype), 2 * spread) - spread
    return (ref + (world.rewards - constant * lengths) / beta).log_softmax(dim=1)


def argmax(world: World) -> Tensor:
    """The reference restricted to each prompt's best responses: what nothing holds, and beta -> 0."""
    ref = response_logprobs(world.tree, world.ref_logits)
    best = world.rewards == world.rewards.amax(dim=1, keepdim=True)
    return ref.masked_fill(~best, -inf).log_softmax(dim=1)


def grpo_large_groups(world: World, beta: float) -> Tensor:
    """Score-only GRPO whose leash is in the loss: pi_ref exp(u r), u = 1 / (beta sd_x(r)) under this very policy.

    u rises from 0 (the reference) until u sd = 1 / beta; a prompt whose u sd never gets there collapses to its best.
    """
    ref, points = response_logprobs(world.tree, world.ref_logits), []
    grid = torch.linspace(0, 200, 20_001, dtype=ref.dtype)
    for prompt in range(world.num_prompts):
        rewards = world.rewards[prompt]
        probs = (ref[prompt] + grid[:, None] * rewards).softmax(dim=1)
        mean = (probs * rewards).sum(dim=1, keepdim=True)
        price = grid * (probs * (rewards - mean).square()).sum(dim=1).sqrt()
        held = (price >= 1 / beta).nonzero()
        points.append(
            (ref[prompt] + grid[held[0]] * rewards).log_softmax(dim=0) if len(held) else argmax(world)[prompt]
        )
    return torch.stack(points)


def grpo_groups(world: World, beta: float, size: int, *, eps: float = 1e-4) -> Tensor:
    """The same with groups of a few: pi ~ pi_ref exp(E[(r - mean) / (sd + eps) | a] / beta), over all groups.

    A bandit's: the other size - 1 responses are every multiset of its actions, each with its probability under pi.
    Reached from the reference by damped steps, as there may be several.
    """
    ref, actions = response_logprobs(world.tree, world.ref_logits), range(world.rewards.shape[1])
    others = torch.tensor(list(combinations_with_replacement(actions, size - 1)))
    ways = torch.tensor(
        [factorial(size - 1) / prod(factorial(row.count(a)) for a in actions) for row in others.tolist()]
    )
    groups = torch.cat(  # [P, own action, multiset, size] of rewards, one's own first
        [
            world.rewards[:, :, None, None].expand(-1, -1, len(others), 1),
            world.rewards[:, others][:, None].expand(-1, len(actions), -1, -1),
        ],
        dim=-1,
    )
    credit = (groups[..., 0] - groups.mean(dim=-1)) / (groups.std(dim=-1, correction=0) + eps)
    logprobs = ref
    for _ in range(_ROUNDS):
        chance = ways.to(ref.dtype) * logprobs[:, others].sum(dim=-1).exp()
        target = ref + (credit * chance[:, None]).sum(dim=-1) / beta
        logprobs = (0.9 * logprobs + 0.1 * target).log_softmax(dim=1)
    return logprobs


def _backwards(world: World, act: Act, gamma: float = 1.0) -> Tensor:
    """From the last token to the first: a state's followers have higher numbers, and are known when it is reached."""
    tree, ref = world.tree, world.ref_logits.log_softmax(dim=-1)
    logprobs, worth = torch.zeros_like(ref), torch.zeros(ref.shape[:2], dtype=ref.dtype)
    for s in reversed(range(tree.num_states)):
        after = gamma * worth[:, tree.next_state[s].clamp(min=0)]
        q = torch.where(tree.response[s] >= 0, world.rewards[:, tree.response[s].clamp(min=0)], after)
        logprobs[:, s], worth[:, s] = act(q, ref[:, s])
    return response_logprobs(tree, logprobs)


def _root(rising: Callable[[Tensor], Tensor], like: Tensor, high: float) -> Tensor:
    """Where a rising function passes 0 in [0, high], elementwise, by halving; shaped as `like`."""
    low, top = torch.zeros_like(like), torch.full_like(like, high)
    for _ in range(_HALVINGS):
        middle = (low + top) / 2
        above = rising(middle) > 0
        low, top = torch.where(above, low, middle), torch.where(above, middle, top)
    return (low + top) / 2
