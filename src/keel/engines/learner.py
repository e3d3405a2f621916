"""One learner for every trained stage: micro-batches in, one optimiser step, statistics out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.dist.crew import enrol, shares, together
from keel.dist.fsdp import clip_gradients, gathered, shard, sum_gradients
from keel.dist.launcher import Fallen
from keel.dist.shards import read_shards, stored, write_shards
from keel.dist.world import everyone, is_lost, world
from keel.engines.base import NumericalFault, Suspect, Weighted
from keel.engines.faults import Finding, examine, not_finite, out_of_memory
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
from keel.errors import UserError, first_line
from keel.microbatches import cut, extremes_of, padded_tokens, part_of, tokens_of, units_of
from keel.tally import Tally

B = TypeVar("B", bound=Weighted)

_BUDGET = "budget"  # the name of the smaller one in a checkpoint
_NAMED = 8  # rows of a fault that are looked for


class _NotFinite(UserError):
    """The loss of some micro-batches, or the gradient of all together."""

    def __init__(self, problem: str, seen: Tally, batches: Sequence[Any] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.seen = seen
        self.batches = batches  # those micro-batches; none where it may be any of them


class _OutOfMemory(UserError, MemoryError):
    """In one process or more, and known to all."""


class GradientLearner(Generic[B]):
    """Owns a module's weights, AdamW and its schedule over `total_steps`.

    The loss of a minibatch is divided by the weight of the *whole* minibatch, so the cut into micro-batches
    changes nothing but memory: where that runs out, micro-batches are cut in two until the step fits, and `say` is
    told. Dropout stays off: what is sampled, scored and trained is one function. `decode` makes text of token ids, to
    name a row.
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
        say: Callable[[str], None] = lambda text: None,
        decode: Callable[[Sequence[int]], str] = str,
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
        self._say = say
        self._decode = decode
        self._budget: int | None = None  # padded tokens a micro-batch, once memory has run out
        enrol(self)

    @property
    def steps(self) -> int:
        return self._steps

    def step(self, batches: Sequence[B], check: Callable[[Tally], None] | None = None) -> Tally:
        """One optimiser step on a minibatch.

        Raises NumericalFault before the weights move if a loss or the gradient is not finite. Whatever raises leaves
        no gradient.
        """
        denominator = sum(batch.weight for batch in batches)
        parts: list[B] = list(batches)
        try:
            work = partial(self._gradients, denominator=denominator)
            parts, tally = self._within_memory(work, parts, f"step {self._steps + 1}")
            if check is not None:
                check(tally)
            return self._take(tally)
        except _NotFinite as found:
            self._drop()
            raise self._fault(found, parts, denominator) from None
        except Fallen:  # the others are not there to be told
            raise
        except BaseException:
            self._drop()
            raise

    def measure(self, batches: Sequence[B]) -> Tally:
        """The loss's statistics without learning."""
        return self._within_memory(self._statistics, batches, f"a validation after step {self._steps}")[1]

    def _within_memory(
        self, work: Callable[[Sequence[B]], Tally], batches: Sequence[B], where: str
    ) -> tuple[list[B], Tally]:
        """What is done with the micro-batches, cut until they fit: those parts, and their statistics.

        Raises UserError where not even one row fits, or those that stay together.
        """
        parts = list(batches)
        while True:
            if self._budget is not None:
                parts = [part for batch in parts for part in cut(batch, self._budget)]
            try:
                return parts, work(parts)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = first_line(error)
            self._drop()  # when the error is gone, which holds on to what was computed
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._halve(parts, reason, where)

    def _halve(self, batches: Sequence[B], reason: str, where: str) -> None:
        """Lower the budget until it cuts one of the micro-batches at least."""
        if all(len(units_of(batch)) == 1 for batch in batches):
            raise UserError(
                f"{self.name}: out of memory in {where} with one row at a time ({reason}); lower "
                "max_tokens or max_new_tokens, set model.gradient_checkpointing: true, or take a smaller model"
            )
        self._budget = max(padded_tokens(batch) for batch in batches) // 2
        while not any(len(cut(batch, self._budget)) > 1 for batch in batches):
            self._budget //= 2
        self._say(
            f"{self.name}: warning: out of memory in {where} ({reason}); it is repeated with at most "
            f"{self._budget} padded tokens a micro-batch, and so is all that follows in this stage. The result is the "
            f"same; token_budget: {self._budget} spares the attempt."
        )

    @together
    def _gradients(self, batches: Sequence[B], denominator: float) -> Tally:
        """Every process's share of the micro-batches; the statistics of all. Raises _NotFinite, in all of them."""
        tally = Tally()
        bad: list[int] = []
        for index, counts in _share(batches):
            try:
                loss, statistics = self.loss(self.module, batches[index], denominator)
                torch.autograd.backward(loss if counts else 0.0 * loss)
            except Exception as error:
                self._fall_where_others_wait(error)
                raise
            if counts:
                tally.merge(statistics)
                if not math.isfinite(float(loss.detach())):
                    bad.append(index)
        tally = _merged(tally)
        bad = sorted(index for mine in everyone(bad) for index in mine)
        if bad:
            raise _NotFinite("loss", tally, [batches[index] for index in bad])
        return tally

    def _fall_where_others_wait(self, error: Exception) -> None:
        """Raises Fallen where they are in the midst of what this process cannot go on with."""
        if world().size == 1 or isinstance(error, UserError) or is_lost(error):
            return
        where = f"process {world().rank} of {world().size}"
        if not out_of_memory(error):
            said = f"{where} failed in a step of {self.name} ({type(error).__name__}: {first_line(error)})"
            raise Fallen(said) from error
        raise Fallen(
            f"{where} ran out of memory in a step of {self.name} ({first_line(error)}); lower its token_budget, which "
            "changes nothing else, and start again: the run goes on from its last checkpoint"
        ) from error

    @together
    def _take(self, tally: Tally) -> Tally:
        """The step itself, with what it was added to the statistics."""
        try:
            sum_gradients(self.weights.named.values())
            norm = clip_gradients(self.weights.named.values(), self.config.max_grad_norm)
        except Exception as error:
            self._fall_where_others_wait(error)
            raise
        if not math.isfinite(norm):
            raise _NotFinite("gradient", tally)
        rate = learning_rate(self.config, self._steps, self.total_steps)
        set_rate(self.optimiser, rate)
        try:
            self.optimiser.step()
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):  # which smaller micro-batches do not mend, and it may be done in part
                raise (UserError if world().size == 1 else Fallen)(
                    f"{self.name}: out of memory for the optimiser's state in step {self._steps + 1} "
                    f"({first_line(error)}); take model.tune: lora, or a smaller model"
                ) from error
            raise
        self.weights.write_back()
        self.weights.drop_gradients()
        self._steps += 1
        tally.add(f"{self.name}/grad_norm", norm)
        tally.add(f"{self.name}/lr", rate)
        return tally

    @together
    def _drop(self) -> None:
        self.weights.drop_gradients()

    @together
    @torch.no_grad()
    def _statistics(self, batches: Sequence[B]) -> Tally:
        """Of every process's share of the micro-batches. Raises _OutOfMemory, in all of them."""
        tally, short = Tally(), ""
        with gathered(self.module):  # where nobody waits for another, so all hear of it in time
            try:
                for index, counts in _share(batches):
                    if counts:
                        tally.merge(self.loss(self.module, batches[index], batches[index].weight)[1])
            except Exception as error:
                if not out_of_memory(error):
                    self._fall_where_others_wait(error)
                    raise
                short = first_line(error)
        reasons = [one for one in everyone(short) if one]
        if reasons:
            raise _OutOfMemory(reasons[0])
        return _merged(tally)

    def write(self, folder: Path) -> None:
        """The weights that train, the optimiser's state and the smaller budget, if any, as files in `folder`."""
        self._write(folder, {} if self._budget is None else {_BUDGET: torch.tensor(self._budget)})

    @together
    def _write(self, folder: Path, known: dict[str, Tensor]) -> None:
        """`known` is what the leader alone knows."""
        moments = optimiser_tensors(self.weights, self.optimiser)
        write_shards(folder, _named("model", self.weights.named) | _named("optimiser", moments) | known)

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
        budget = {_BUDGET: torch.tensor(0)} if _BUDGET in known else {}
        read_shards(folder, _named("model", self.weights.named) | _named("optimiser", moments) | budget)
        self._budget = int(budget[_BUDGET]) if budget else None
        self.weights.write_back()
        load_optimiser(self.weights, self.optimiser, moments)
        self._steps = steps

    @together
    def skip(self) -> None:
        """Leave a minibatch out: it counts in the schedule as a step that was taken."""
        self._steps += 1

    @together
    def look(self, batch: B, denominator: float) -> Finding:
        """What a micro-batch gives, and what of it is not finite; no weight moves, and no gradient stays."""
        try:
            return examine(self.module, self.loss, batch, denominator, self._norm, self.weights.named)
        finally:
            self.weights.drop_gradients()

    def suspects(self, batch: B, number: int, denominator: float, most: int | None = None) -> list[Suspect]:
        """What each of the smallest parts of micro-batch `number` gives, or of the first `most` that are not finite."""
        found: list[Suspect] = []
        for rows in units_of(batch):
            part = part_of(batch, rows)
            finding = self.look(part, denominator)
            if most is not None and finding.finite:
                continue
            tokens = tuple(tokens_of(batch, row) for row in rows)
            suspect = Suspect(
                batch=number,
                rows=tuple(rows),
                tokens=tokens,
                texts=tuple(self._decode(one) if one else "" for one in tokens),
                loss=finding.loss,
                gradient_norm=finding.gradient_norm,
                where=finding.where,
                numbers={**extremes_of(part), **finding.statistics},
            )
            found.append(suspect)
            if len(found) == most:
                break
        return found

    def _norm(self) -> float:
        """Of the gradients of all processes, each of which has computed the same."""
        sum_gradients(self.weights.named.values())
        return clip_gradients(self.weights.named.values(), math.inf) / world().size

    @together
    def _weights_not_finite(self) -> list[str]:
        """By name; frozen ones too."""
        return sorted(set().union(*everyone(not_finite(dict(self.module.named_parameters())))))

    def _fault(self, found: _NotFinite, batches: Sequence[B], denominator: float) -> NumericalFault:
        """Which micro-batches it was, and which of their rows: each is looked at alone, as far as is needed."""
        guilty: list[B] = []
        suspects: list[Suspect] = []
        for batch in found.batches or batches:
            if len(suspects) == _NAMED:
                break
            if found.batches or not self.look(batch, denominator).finite:
                suspects += self.suspects(batch, len(guilty), denominator, _NAMED - len(suspects))
                guilty.append(batch)
        values = ", ".join(f"{key} {value:.4g}" for key, value in found.seen.means().items())
        return NumericalFault(
            f"{self.name}: the {found.problem} of step {self._steps + 1} is not finite ({values}); the weights were "
            "left as they were",
            problem=found.problem,
            batches=guilty or batches,
            denominator=denominator,
            suspects=suspects,
            weights=self._weights_not_finite(),
        )


def _share(batches: Sequence[Weighted]) -> Iterator[tuple[int, bool]]:
    """This process's micro-batches, and as many that do not count as make all processes equal: they meet in each."""
    taken = shares([batch.weight for batch in batches])
    for index in taken[world().rank]:
        yield index, True
    spare = max(map(len, taken)) - len(taken[world().rank])
    for _ in range(spare):
        yield min(range(len(batches)), key=lambda index: batches[index].weight), False


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
