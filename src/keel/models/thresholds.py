"""Where judges draw their lines on the scale of the scores: trained beside a reward model, and no part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from keel.functional.preference import increasing
from keel.models.reward import RewardModel
from keel.records import CutPoints, Sequences


class Thresholds(nn.Module):
    """Cut-points between levels, and an offset an annotator whose mean over them is 0.

    `counts` are the ratings of each level in the data; at the start the cut-points give just these shares to a score of
    0, with half a rating more for each level, and the offsets are 0.
    """

    def __init__(self, counts: Sequence[int], num_annotators: int) -> None:
        super().__init__()
        whole = sum(counts) + 0.5 * len(counts)
        shares = [(sum(counts[: k + 1]) + 0.5 * (k + 1)) / whole for k in range(len(counts) - 1)]
        cuts = [math.log(share / (1 - share)) for share in shares]
        gaps = [after - before for before, after in pairwise(cuts)]
        self.free = nn.Parameter(torch.tensor([cuts[0], *(math.log(math.expm1(gap)) for gap in gaps)]))
        self.lenience = nn.Parameter(torch.zeros(num_annotators)) if num_annotators > 1 else None

    @property
    def points(self) -> CutPoints:
        """The cut-points and offsets as they are now, in the units of the scores that train."""
        if self.lenience is None:
            offsets = self.free.new_zeros(1)  # one annotator's is the mean
        else:
            offsets = torch.cat([self.lenience - self.lenience.mean(), self.lenience.new_zeros(1)])
        return CutPoints(increasing(self.free), offsets)


class JudgedModel(nn.Module):
    """A reward model with the thresholds of its judges: what trains as one. It scores as the reward model does."""

    def __init__(self, reward: RewardModel, thresholds: Thresholds) -> None:
        super().__init__()
        self.reward = reward
        self.thresholds = thresholds.to(reward.device)

    @property
    def device(self) -> torch.device:
        return self.reward.device

    def forward(self, sequences: Sequences) -> Tensor:
        """Scores [B]."""
        scores: Tensor = self.reward(sequences)
        return scores
