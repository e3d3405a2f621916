"""One learner for every trained stage: micro-batches in, one optimiser step, statistics out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.engines.base import Weighted
from keel.engines.losses import Loss
from keel.engines.optim import (
    TrainedWeights,
    learning_rate,
    load_optimiser,
    make_optimiser,
    optimiser_tensors,
    set_rate,
)
from keel.errors import UserError
from keel.tally import Tally

B = TypeVar("B", bound=Weighted)


class GradientLearner(Generic[B]):
    """Owns a module's weights, AdamW and its schedule over `total_steps`.

    The loss of a minibatch is divided by the weight of the *whole* minibatch, so the cut into micro-batches
    changes nothing but memory. Dropout stays off: what is sampled, scored and trained is one function.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        loss: Loss[B],
        config: OptimConfig,
        *,
        total_steps: int,
        head: Collection[nn.Parameter] = (),
        head_lr_scale: float = 1.0,
    ) -> None:
        self.name = name
        self.module = module.eval()
        self.loss = loss
        self.config = config
        self.total_steps = total_steps
        self.weights = TrainedWeights(module)
        new = {id(weight) for weight in head}
        names = {name for name, weight in module.named_parameters() if id(weight) in new}
        self.optimiser = make_optimiser(self.weights, config, head=names, head_lr_scale=head_lr_scale)
        self._steps = 0

    @property
    def steps(self) -> int:
        return self._steps

    def step(self, batches: Sequence[B], check: Callable[[Tally], None] | None = None) -> Tally:
        """One optimiser step on a minibatch.

        Raises UserError before the weights move if the gradient is not finite. Whatever raises leaves no gradient.
        """
        denominator = sum(batch.weight for batch in batches)
        tally = Tally()
        try:
            for batch in batches:
                loss, statistics = self.loss(self.module, batch, denominator)
                torch.autograd.backward(loss)
                tally.merge(statistics)
            if check is not None:
                check(tally)
            norm = float(nn.utils.clip_grad_norm_(self.weights.named.values(), self.config.max_grad_norm))
            self._require_finite(tally, norm)
            rate = learning_rate(self.config, self._steps, self.total_steps)
            set_rate(self.optimiser, rate)
            self.optimiser.step()
            self.weights.write_back()
        finally:
            self.optimiser.zero_grad()
        self._steps += 1
        tally.add(f"{self.name}/grad_norm", norm)
        tally.add(f"{self.name}/lr", rate)
        return tally

    @torch.no_grad()
    def measure(self, batches: Sequence[B]) -> Tally:
        """The loss's statistics without learning."""
        tally = Tally()
        for batch in batches:
            tally.merge(self.loss(self.module, batch, batch.weight)[1])
        return tally

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The weights that train, and the optimiser's state."""
        return {
            "model": dict(self.weights.named),
            "optimiser": optimiser_tensors(self.weights, self.optimiser),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Go back to what `tensors` gave after `steps` steps."""
        self.weights.load(tensors["model"])
        load_optimiser(self.weights, self.optimiser, tensors["optimiser"])
        self._steps = steps

    def _require_finite(self, tally: Tally, norm: float) -> None:
        if math.isfinite(norm):
            return
        values = ", ".join(f"{key} {value:.4g}" for key, value in tally.means().items())
        raise UserError(
            f"{self.name}: the gradient of step {self._steps + 1} is not finite ({values}); the weights were left "
            "as they were. Lower the learning rate, or look for extreme scores in the data"
        )
