"""Critics: a head on the policy's own states, or a network of its own that starts from a reward model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keel.models.adapters import adapter_parameters, body_of
from keel.models.reward import RewardModel


class ValueHead(nn.Linear):
    """A value from a state [..., H]; 0 everywhere at the start. float32, whatever the body's precision."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] -> [...]"""
        values: Tensor = super().forward(states.to(self.weight.dtype)).squeeze(-1)
        return values

    def trained(self) -> list[nn.Parameter]:
        """What the critic alone trains."""
        return list(self.parameters())


class ValueNetwork(nn.Module):
    """A critic with a body of its own; at the start its value of a state is the reward model's score of that prefix.

    With an adapter, that adapter of the body is its own: the body may then be the policy's.
    """

    def __init__(self, reward: RewardModel, *, adapter: str | None = None) -> None:
        super().__init__()
        self.body = body_of(reward.classifier)
        self.adapter = adapter
        weight: Tensor = reward.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        self.head = ValueHead(weight.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.fill_(-reward.shift)

    def forward(self, states: Tensor) -> Tensor:
        """Values [...] of the network's own states [..., H]."""
        values: Tensor = self.head(states)
        return values

    def trained(self) -> list[nn.Parameter]:
        """What the critic alone trains."""
        body = list(self.body.parameters()) if self.adapter is None else adapter_parameters(self.body, self.adapter)
        return [*self.head.parameters(), *body]
