"""One learner for every trained stage: micro-batches in, one optimiser step, statistics out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.dist.crew import enrol, shares, together
from keel.dist.fsdp import clip_gradients, gathered, shard, sum_gradients
from keel.dist.shards import read_shards, stored, write_shards
from keel.dist.world import everyone, world
from keel.engines.base import Weighted
from keel.engines.losses import Loss
from keel.engines.optim import (
    TrainedWeights,
    empty_optimiser_tensors,
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
        new = {id(weight) for weight in head}
        names = {name for name, weight in module.named_parameters() if id(weight) in new}
        shard(module)
        self.name = name
        self.module = module.eval()
        self.loss = loss
        self.config = config
        self.total_steps = total_steps
        self.weights = TrainedWeights(module)
        self.optimiser = make_optimiser(self.weights, config, head=names, head_lr_scale=head_lr_scale)
        self._steps = 0
        enrol(self)

    @property
    def steps(self) -> int:
        return self._steps

    def step(self, batches: Sequence[B], check: Callable[[Tally], None] | None = None) -> Tally:
        """One optimiser step on a minibatch.

        Raises UserError before the weights move if the gradient is not finite. Whatever raises leaves no gradient.
        """
        try:
            tally = self._gradients(batches)
            if check is not None:
                check(tally)
            return self._take(tally)
        except BaseException:
            self._drop()
            raise

    @together
    def _gradients(self, batches: Sequence[B]) -> Tally:
        """Every process's share of the micro-batches; the statistics of all."""
        denominator = sum(batch.weight for batch in batches)
        tally = Tally()
        for batch, counts in _share(batches):
            loss, statistics = self.loss(self.module, batch, denominator)
            torch.autograd.backward(loss if counts else 0.0 * loss)
            if counts:
                tally.merge(statistics)
        return _merged(tally)

    @together
    def _take(self, tally: Tally) -> Tally:
        """The step itself, with what it was added to the statistics."""
        sum_gradients(self.weights.named.values())
        norm = clip_gradients(self.weights.named.values(), self.config.max_grad_norm)
        self._require_finite(tally, norm)
        rate = learning_rate(self.config, self._steps, self.total_steps)
        set_rate(self.optimiser, rate)
        self.optimiser.step()
        self.weights.write_back()
        self.optimiser.zero_grad()
        self._steps += 1
        tally.add(f"{self.name}/grad_norm", norm)
        tally.add(f"{self.name}/lr", rate)
        return tally

    @together
    def _drop(self) -> None:
        self.optimiser.zero_grad()

    @together
    @torch.no_grad()
    def measure(self, batches: Sequence[B]) -> Tally:
        """The loss's statistics without learning."""
        tally = Tally()
        with gathered(self.module):
            for batch, counts in _share(batches):
                if counts:
                    tally.merge(self.loss(self.module, batch, batch.weight)[1])
        return _merged(tally)

    @together
    def write(self, folder: Path) -> None:
        """The weights that train, and the optimiser's state, as files in `folder`."""
        moments = optimiser_tensors(self.weights, self.optimiser)
        write_shards(folder, _named("model", self.weights.named) | _named("optimiser", moments))

    @together
    def read(self, folder: Path, steps: int) -> None:
        """Go back to what was written into `folder` after `steps` steps, by any number of processes.

        Raises UserError where those are the weights of another model.
        """
        known = stored(folder)
        if known and not _below("model", known):
            raise UserError(
                f"the checkpoint {folder} was written by an earlier version of Keel, in another form; finish the run "
                "with that version, or make the stage anew with --fresh-from"
            )
        self.weights.require_names(_below("model", known))
        moments = empty_optimiser_tensors(self.weights, _below("optimiser", known))
        read_shards(folder, _named("model", self.weights.named) | _named("optimiser", moments))
        self.weights.write_back()
        load_optimiser(self.weights, self.optimiser, moments)
        self._steps = steps

    def _require_finite(self, tally: Tally, norm: float) -> None:
        if math.isfinite(norm):
            return
        values = ", ".join(f"{key} {value:.4g}" for key, value in tally.means().items())
        raise UserError(
            f"{self.name}: the gradient of step {self._steps + 1} is not finite ({values}); the weights were left "
            "as they were. Lower the learning rate, or look for extreme scores in the data"
        )


def _share(batches: Sequence[B]) -> Iterator[tuple[B, bool]]:
    """This process's micro-batches, and as many that do not count as make all processes equal: they meet in each."""
    taken = shares([batch.weight for batch in batches])
    for index in taken[world().rank]:
        yield batches[index], True
    spare = max(map(len, taken)) - len(taken[world().rank])
    for _ in range(spare):
        yield min(batches, key=lambda batch: batch.weight), False


def _merged(tally: Tally) -> Tally:
    """Of all processes."""
    merged = Tally()
    for part in everyone(tally):
        merged.merge(part)
    return merged


def _named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the name of their kind before their own."""
    return {f"{kind}.{name}": one for name, one in tensors.items()}


def _below(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of one kind, by their own names."""
    return {name.removeprefix(f"{kind}."): one for name, one in tensors.items() if name.startswith(f"{kind}.")}
