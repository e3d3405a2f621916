"""The reward model: a sequence classifier with one label, read at the last real token."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from keel.errors import UserError
from keel.models.adapters import using
from keel.models.hidden import last_hidden
from keel.models.recompute import recomputing
from keel.records import Sequences

SHIFT_KEY = "keel_reward_shift"


class RewardModel(nn.Module):
    """score(x, y) = head(hidden at the last real token) - shift, whatever the padding and the batch.

    transformers' own forward of `classifier` gives the score plus the shift (its heads have no bias).
    """

    def __init__(self, classifier: nn.Module, *, adapter: str | None = None, recompute: bool = False) -> None:
        super().__init__()
        if not isinstance(getattr(classifier, "score", None), nn.Module):
            raise UserError(
                f"{type(classifier).__name__} has no `score` head on its last token, so it is no reward model Keel can "
                "use; take a decoder's sequence classifier"
            )
        self.classifier = classifier
        self.adapter = adapter  # of the classifier's body, which may have others; None: the body as it is
        self.recompute = recompute

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def head(self) -> nn.Module:
        """The scalar head, whatever its family calls it."""
        model: Any = self.classifier
        head: nn.Module = model.score
        return head

    @property
    def shift(self) -> float:
        config: Any = self.classifier.config
        return float(getattr(config, SHIFT_KEY, 0.0))

    def set_shift(self, shift: float) -> None:
        """What is taken off the head's scores."""
        setattr(self.classifier.config, SHIFT_KEY, shift)

    def forward(self, sequences: Sequences) -> Tensor:
        """Scores [B]."""
        with using(self.classifier, self.adapter), recomputing(self.classifier) if self.recompute else nullcontext():
            hidden = last_hidden(self.classifier, sequences.tokens)
        rows = torch.arange(len(sequences), device=hidden.device)
        weight: Tensor = self.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        raw: Tensor = self.head(hidden[rows, sequences.lengths - 1].to(weight.dtype)).squeeze(-1).float()
        return raw - self.shift

    def reset_head(self, seed: int) -> None:
        """Small random weights for the head, a function of the seed alone."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01)

    def normalise(self, mean: float, std: float) -> None:
        """Give scores mean 0 and sd 1 where they had `mean` and `std`: 1/std into the head, the mean into the shift."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        shift = (self.shift + mean) / std
        with torch.no_grad():
            weight.div_(std)
        self.set_shift(shift)
