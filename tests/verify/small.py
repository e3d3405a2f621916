"""Worlds for a pencil: two responses, and a tree of seven."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.verify.worlds import Tree, World, list_responses


def two_responses(ref: tuple[float, float] = (0.5, 0.5)) -> World:
    """Rewards 1 and 3 for two responses of one token."""
    return _world(
        list_responses(2, longest=1, eos=None), torch.tensor([[ref]]).double().log(), torch.tensor([[1.0, 3]])
    )


def seven_responses() -> World:
    """Symbols 0 (end), 1 and 2, at most two tokens: 0; 10, 11, 12; 20, 21, 22. Rewards and logits without a pattern."""
    logits = torch.tensor([[[0.3, -0.2, 0.9], [0.0, 1.1, -0.4], [-0.7, 0.2, 0.5]]])
    return _world(list_responses(3, longest=2, eos=0), logits, torch.tensor([[0.4, -1.3, 0.8, 2.1, -0.6, 0.1, 1.7]]))


def _world(tree: Tree, logits: Tensor, rewards: Tensor) -> World:
    return World("small", tree, None, torch.tensor([[0, 1]]), logits.double(), rewards.double())
