"""Numbers that are not finite: which rows they came from, a snapshot to look closer, and how many may be left out.

STAGE/faults/step-7/
    fault.json       what was found; loss's denominator, optimiser steps before it
    batches/         the micro-batches at fault, a safetensors file each
    learner/         the weights that train, and the optimiser, as before that step
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from keel.engines.base import Learner, NumericalFault, Suspect, Weighted
from keel.errors import UserError
from keel.microbatches import part_of, write_batch
from keel.pipeline.rollouts import RolloutFault
from keel.records import Leash, PolicyBatch, Rollout
from keel.runs import files
from keel.runs.console import Console
from keel.runs.layout import FAULTS
from keel.runs.run import StageRun
from keel.tally import Tally

B = TypeVar("B", bound=Weighted)
Known = Callable[[tuple[int, ...]], str]
"""What a stage knows of the row with those token ids, say "row 12 of the training data"."""

FAULT, BATCHES, LEARNER = "fault.json", "batches", "learner"
_KEPT = 3  # snapshots of a stage, the last ones: each holds a whole learner
_QUOTED = 60  # characters of a row's text
_SPELLED = 3  # rows that a sentence names


class Guard(Generic[B]):
    """The steps of a stage's learner: one whose loss or gradient is not finite is saved to be looked at, and ends the
    stage, or is left out, `limit` of them in the whole stage.
    """

    def __init__(self, learner: Learner[B], stage: StageRun, console: Console, *, limit: int, skipped: int) -> None:
        self.name = stage.name
        self.skipped = skipped  # so far; it must survive an interruption
        self._learner = learner
        self._stage = stage
        self._console = console
        self._limit = limit

    def step(self, batches: Sequence[B], known: Known, check: Callable[[Tally], None] | None = None) -> Tally:
        """As `Learner.step`; of a minibatch that is left out, `NAME/skipped` alone.

        Raises UserError at a fault past the limit, which names the rows and the snapshot.
        """
        try:
            return self._learner.step(batches, check)
        except NumericalFault as fault:
            sentence = save_fault(fault, self._stage, self._learner, known)
            if self.skipped >= self._limit:
                left_out = f"; {self.skipped} were left out before (skip_faults)" if self.skipped else ""
                raise UserError(f"{sentence}{left_out}") from fault
        self.skipped += 1
        self._learner.skip()
        self._console.say(f"{sentence}. Left out, the {self.skipped}. of at most {self._limit} (skip_faults).")
        tally = Tally()
        tally.extreme(f"{self.name}/skipped", self.skipped)
        return tally


@contextmanager
def saving_rollouts(stage: StageRun, learner: Learner[PolicyBatch], *, paired: bool = False) -> Iterator[None]:
    """Save what cannot be learned from because a score, a log-probability or a value is not finite.

    `paired` is whether the loss takes neighbours as pairs.

    Raises UserError that names the responses and the snapshot.
    """
    try:
        yield
    except RolloutFault as fault:
        rows = sorted({row - row % 2 + side for row in fault.rows for side in (0, 1)} if paired else fault.rows)
        batch = _as_scored(fault.rollout, rows, paired)
        suspects = [
            Suspect(0, (rows.index(row),), ((),), (reason,), math.nan, math.nan, "", {})
            for row, reason in fault.rows.items()
        ]
        found = NumericalFault(
            f"{stage.name}: {fault}", problem="rollout", batches=[batch], denominator=batch.weight, suspects=suspects
        )
        folder = _write(found, stage, learner, lambda tokens: "")
        raise UserError(f"{stage.name}: {fault}; nothing was trained on it. {_closer(folder)}") from fault


def _as_scored(rollout: Rollout, rows: Sequence[int], paired: bool) -> PolicyBatch:
    """Rows of a rollout as a micro-batch, each token credited with score, values and log-ratio to the reference.

    So its loss is not finite for the rows of which one of these is not.
    """
    credit = rollout.scores.total[:, None] - (rollout.logprobs - rollout.ref_logprobs)
    leash = Leash(1.0, rollout.ref_logprobs, torch.zeros(len(rollout.sequences))) if paired else None
    fields = (rollout.sequences, rollout.logprobs, rollout.values, credit, credit + rollout.values)
    return part_of(PolicyBatch(*fields, leash=leash, paired=paired), rows)


def save_fault(fault: NumericalFault, stage: StageRun, learner: Learner[Any], known: Known) -> str:
    """Write the snapshot; a sentence without its full stop that says what was not finite, in which rows, and where."""
    folder = _write(fault, stage, learner, known)
    return f"{fault}. {_whence(fault, known)}. {_closer(folder)}"


def _whence(fault: NumericalFault, known: Known) -> str:
    if fault.weights:
        others = f" and {len(fault.weights) - 1} more" if len(fault.weights) > 1 else ""
        return f"Weights are not finite already: {fault.weights[0]}{others}"
    if not fault.suspects:
        return "Each row alone is finite: it is their sum, or what they do together; lower the learning rate"
    named = [_named(one, known) for one in fault.suspects[:_SPELLED]]
    left = len(fault.suspects) - len(named)
    return f"It comes from {'; and from '.join(named)}" + (f"; and from {left} more at least" if left else "")


def _named(suspect: Suspect, known: Known) -> str:
    """A row, or rows that stay together, with what is extreme in them."""
    rows = [
        ", ".join(part for part in (known(tokens), _quoted(text)) if part)
        for tokens, text in zip(suspect.tokens, suspect.texts, strict=True)
    ]
    bad = [f"{name} {value:g}" for name, value in suspect.numbers.items() if not math.isfinite(value)]
    rest = [f"{name} {value:.4g}" for name, value in suspect.numbers.items() if math.isfinite(value)]
    length = max(map(len, suspect.tokens), default=0)
    facts = [f"{length} tokens", *([f"first not finite: {suspect.where}"] if suspect.where else []), *(bad or rest)]
    return f"{' with '.join(rows)} ({'; '.join(facts)})"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…") if text else ""


def _closer(folder: Path) -> str:
    return f"`keel debug replay {folder}` looks closer"


def _write(fault: NumericalFault, stage: StageRun, learner: Learner[Any], known: Known) -> Path:
    """The snapshot, whole or not there; that of the same step is replaced, and the oldest make room."""
    place = stage.path / FAULTS
    final, beside = place / f"step-{learner.steps + 1}", place / f".step-{learner.steps + 1}.work"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / BATCHES).mkdir(parents=True)
    (beside / LEARNER).mkdir()
    for number, batch in enumerate(fault.batches):
        write_batch(beside / BATCHES / f"{number:04}.safetensors", batch)
    learner.write((beside / LEARNER).absolute())
    files.write_json(beside / FAULT, _content(fault, stage, learner, known))
    files.sync_tree(beside)
    if final.exists():
        files.discard(final)
    files.move(beside, final)
    for old in sorted(place.glob("step-*"), key=_made)[:-_KEPT]:
        files.discard(old)
    return final


def _made(snapshot: Path) -> tuple[int, int]:
    """When, and at which step: one that was undone may have had a higher number."""
    return snapshot.stat().st_mtime_ns, int(snapshot.name.removeprefix("step-"))


def _content(fault: NumericalFault, stage: StageRun, learner: Learner[Any], known: Known) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "steps": learner.steps,
        "problem": fault.problem,
        "sentence": str(fault),
        "denominator": fault.denominator,
        "weights": list(fault.weights),
        "rows": [
            {
                "batch": one.batch,
                "rows": list(one.rows),
                "known": [known(tokens) for tokens in one.tokens],
                "texts": list(one.texts),
                "loss": _plain(one.loss),
                "gradient_norm": _plain(one.gradient_norm),
                "where": one.where,
                "numbers": {name: _plain(value) for name, value in one.numbers.items()},
            }
            for one in fault.suspects
        ],
    }


def _plain(number: float) -> float | str:
    """As JSON takes it, which has no NaN and no infinity."""
    return number if math.isfinite(number) else str(number)
