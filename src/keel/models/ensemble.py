"""An ensemble of reward models: heads on one body, or adapters on one base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keel.models.reward import RewardModel
from keel.records import Sequences


class RewardEnsemble(nn.Module):
    """Scores [B, k], a column a member: every label of every part.

    `parts` are one model with k labels, or k models with one.
    """

    def __init__(self, parts: Sequence[RewardModel]) -> None:
        super().__init__()
        self.parts: Sequence[RewardModel] = nn.ModuleList(parts)  # type: ignore[assignment]  # untyped elements
        for part in parts:
            part.label = None

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def head_weights(self) -> list[nn.Parameter]:
        """What is new where a reward model starts from a language model."""
        return [weight for part in self.parts for weight in part.head_weights]

    def forward(self, sequences: Sequences) -> Tensor:
        """Scores [B, k]."""
        return torch.cat([part(sequences) for part in self.parts], dim=1)

    def normalise(self, means: Sequence[float], std: float) -> None:
        """Take each member's mean off its scores, and divide all by the same `std`: their weights stay equal."""
        rest = list(means)
        for part in self.parts:
            count = len(part.shifts)
            part.normalise(rest[:count], std)
            rest = rest[count:]
