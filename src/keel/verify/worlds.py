"""Worlds whose every response can be listed: a bandit, and short sequences with an end token.

A prompt's responses form a tree. A *state* is the part of a response that was said so far (the empty one is state 0),
an *action* the next token; an action that ends the response leads to no state but to the response itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from keel.seeds import Draws

EOS = 0  # where a world has an end token
NUM_PROMPTS = 8
PROMPT_LENGTH = 2

Reward = Literal["structured", "independent"]


@dataclass(frozen=True)
class Tree:
    """The responses to any prompt, N of at most T tokens out of V, over S states."""

    tokens: Tensor  # int64 [N, T], 0 outside the mask
    mask: Tensor  # bool [N, T]
    states: Tensor  # int64 [N, T], the state in which each token is said; 0 outside the mask
    ended: Tensor  # bool [N], False = cut at the length limit, which is a termination too
    next_state: Tensor  # int64 [S, V], -1 where the action ends the response; a later state has a higher number
    response: Tensor  # int64 [S, V], the response that the action ends, -1 where it goes on

    @property
    def longest(self) -> int:
        """T"""
        return self.tokens.shape[1]

    @property
    def num_symbols(self) -> int:
        """V"""
        return self.next_state.shape[1]

    @property
    def num_states(self) -> int:
        """S"""
        return self.next_state.shape[0]


@dataclass(frozen=True)
class World:
    """A tree of responses, P prompts, a reference policy as a table, and a reward for every response. Float64."""

    name: str
    tree: Tree
    eos: int | None  # None: nothing ends a response but its length
    prompts: Tensor  # int64 [P, PROMPT_LENGTH], each prompt as symbols other than EOS
    ref_logits: Tensor  # [P, S, V]
    rewards: Tensor  # [P, N], mean 0 and standard deviation 1 under the reference, prompt by prompt

    @property
    def num_prompts(self) -> int:
        """P"""
        return len(self.prompts)

    def prompt_numbers(self, tokens: Tensor) -> Tensor:
        """int64 [B], which prompt each row of `tokens` [B, L] begins with."""
        table = torch.zeros((self.tree.num_symbols,) * PROMPT_LENGTH, dtype=torch.long)
        table[tuple(self.prompts.T)] = torch.arange(self.num_prompts)
        return table[tuple(tokens[:, :PROMPT_LENGTH].T)]


def bandit(*, num_actions: int = 8, spread: float = 0.5, seed: int = 0) -> World:
    """Every response is one token, so each is as long as it may be: none has an end token."""
    tree = list_responses(num_actions, longest=1, eos=None)
    return _world("bandit", tree, None, "independent", spread, seed)


def sequences(reward: Reward, *, spread: float = 0.5, seed: int = 0) -> World:
    """Responses of up to 4 tokens over 5 symbols with EOS: 341 of them, of which the 256 without EOS are cut.

    `structured`: a term for every token at its position and for every pair of neighbours; `independent`: one draw a
    response, of which nothing can be guessed from the others.
    """
    return _world(reward, list_responses(5, longest=4, eos=EOS), EOS, reward, spread, seed)


def list_responses(num_symbols: int, *, longest: int, eos: int | None) -> Tree:
    """Every response of at most `longest` tokens: it ends with `eos`, or is cut at the limit."""
    words = [symbol for symbol in range(num_symbols) if symbol != eos]
    prefixes = [prefix for length in range(longest) for prefix in product(words, repeat=length)]
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    next_state = torch.full((len(prefixes), num_symbols), -1)
    response = torch.full_like(next_state, -1)
    responses: list[tuple[int, ...]] = []
    for state, prefix in enumerate(prefixes):
        for symbol in range(num_symbols):
            said = (*prefix, symbol)
            if said in number:
                next_state[state, symbol] = number[said]
            else:
                response[state, symbol] = len(responses)
                responses.append(said)
    tokens = torch.tensor([said + (0,) * (longest - len(said)) for said in responses])
    mask = torch.tensor([[t < len(said) for t in range(longest)] for said in responses])
    states = torch.tensor([[number[said[:t]] if t < len(said) else 0 for t in range(longest)] for said in responses])
    return Tree(tokens, mask, states, torch.tensor([said[-1] == eos for said in responses]), next_state, response)


def _world(name: str, tree: Tree, eos: int | None, reward: Reward, spread: float, seed: int) -> World:
    """`spread` is the standard deviation of the reference's logits."""
    draws = Draws(seed, f"verify {name}")
    words = [symbol for symbol in range(tree.num_symbols) if symbol != eos]
    prompts = torch.tensor(list(product(words, repeat=PROMPT_LENGTH)))[:NUM_PROMPTS]
    ref_logits = spread * _normal(draws, "reference", NUM_PROMPTS, tree.num_states, tree.num_symbols)
    raw = _structured(draws, tree) if reward == "structured" else _normal(draws, "reward", NUM_PROMPTS, len(tree.mask))
    rewards = standardised(raw, response_logprobs(tree, ref_logits).exp())
    return World(name, tree, eos, prompts, ref_logits, rewards)


def standardised(rewards: Tensor, probs: Tensor) -> Tensor:
    """The rewards [P, N] with mean 0 and standard deviation 1 under `probs`, prompt by prompt."""
    centred = rewards - (probs * rewards).sum(dim=1, keepdim=True)
    return centred / (probs * centred.square()).sum(dim=1, keepdim=True).sqrt()


def _structured(draws: Draws, tree: Tree) -> Tensor:
    """[P, N]: a term a token and position, and one a pair of neighbours."""
    size = tree.num_symbols
    at_position = _normal(draws, "position terms", NUM_PROMPTS, tree.longest, size)
    after = _normal(draws, "neighbour terms", NUM_PROMPTS, size, size)
    ones = at_position[:, torch.arange(tree.longest), tree.tokens].where(tree.mask, 0.0).sum(dim=2)
    twos = after[:, tree.tokens[:, :-1], tree.tokens[:, 1:]].where(tree.mask[:, 1:], 0.0).sum(dim=2)
    return ones + twos


def response_logprobs(tree: Tree, logits: Tensor) -> Tensor:
    """log pi(y|x) of every response, [P, N], under a table of logits [P, S, V]; differentiable."""
    steps = logits.log_softmax(dim=-1)[:, tree.states, tree.tokens]
    return steps.where(tree.mask, 0.0).sum(dim=-1)


def _normal(draws: Draws, purpose: str, *shape: int) -> Tensor:
    return torch.from_numpy(draws.generator(purpose).standard_normal(shape))
