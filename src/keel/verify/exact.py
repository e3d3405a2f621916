"""What is known exactly where responses can be listed: the optimum, and how far a policy is from it (math.md §2).

A policy is a table of logits [P, S, V]; everything here is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.closed_form import log_partition
from keel.verify.worlds import World, response_logprobs


def objective(world: World, logits: Tensor, beta: float) -> Tensor:
    """J(pi) = E_pi[r] - beta KL(pi || pi_ref) of each prompt, [P]; differentiable."""
    logprobs = response_logprobs(world.tree, logits)
    log_ratio = logprobs - response_logprobs(world.tree, world.ref_logits)
    return (logprobs.exp() * (world.rewards - beta * log_ratio)).sum(dim=1)


def gradient(world: World, logits: Tensor, beta: float) -> Tensor:
    """The gradient [P, S, V] of sum_x J, by autograd through the sum over all responses."""
    table = logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(objective(world, table, beta).sum(), table)
    return slope


def visits(world: World, logits: Tensor) -> Tensor:
    """The probability that a response passes through each state, [P, S]."""
    tree = world.tree
    probs = response_logprobs(tree, logits).exp()
    passing = probs[..., None].expand(-1, -1, tree.longest)[:, tree.mask]
    return torch.zeros(logits.shape[:2], dtype=probs.dtype).index_add(1, tree.states[tree.mask], passing)


def kl_to_reference(world: World, logits: Tensor) -> Tensor:
    """KL(pi || pi_ref) of each prompt, nats a response [P]."""
    return kl(response_logprobs(world.tree, logits), response_logprobs(world.tree, world.ref_logits))


def kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL of the first distribution to the second, [P], from the log-probabilities [P, N] of all responses."""
    return (logprobs.exp() * (logprobs - other)).sum(dim=1)


def optimal_logprobs(world: World, beta: float) -> Tensor:
    """log pi*(y|x) = log pi_ref(y|x) + r/beta - log Z(x), [P, N]."""
    ref = response_logprobs(world.tree, world.ref_logits)
    return ref + world.rewards / beta - log_partition(ref.exp(), world.rewards, beta)[:, None]


def optimal_value(world: World, beta: float) -> Tensor:
    """J(pi*) = beta log Z of each prompt, [P]."""
    ref = response_logprobs(world.tree, world.ref_logits)
    return beta * log_partition(ref.exp(), world.rewards, beta)


def soft_values(world: World, beta: float) -> tuple[Tensor, Tensor]:
    """W(s) [P, S] and W(s·a) [P, S, V], backwards from W(end) = r: W(s) = beta log sum_a pi_ref(a|s) exp(W(s·a)/beta).

    A state's followers have higher numbers than it, so they are known when it is reached.
    """
    tree, ref = world.tree, world.ref_logits.log_softmax(dim=-1)
    state = torch.zeros(ref.shape[:2], dtype=ref.dtype)
    ends = tree.response >= 0
    action = torch.where(ends, world.rewards[:, tree.response.clamp(min=0)], 0.0)
    for s in reversed(range(tree.num_states)):
        goes_on = tree.next_state[s][~ends[s]]
        action[:, s, ~ends[s]] = state[:, goes_on]
        state[:, s] = beta * (ref[:, s] + action[:, s] / beta).logsumexp(dim=-1)
    return state, action


def optimal_logits(world: World, beta: float) -> Tensor:
    """The same optimum token by token, [P, S, V]: log pi_ref(a|s) + (W(s·a) - W(s)) / beta."""
    state, action = soft_values(world, beta)
    return world.ref_logits.log_softmax(dim=-1) + (action - state[..., None]) / beta


def gap(world: World, logits: Tensor, beta: float) -> Tensor:
    """J(pi*) - J(pi) = beta KL(pi || pi*) of each prompt, [P]: how much of the objective is still missing."""
    return beta * kl(response_logprobs(world.tree, logits), optimal_logprobs(world, beta))
