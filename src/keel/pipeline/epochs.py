"""The loop of the stages that walk over rows in epochs: supervised fine-tuning, the reward model, direct."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from keel.config.training import TrainingConfig
from keel.data.mix import Mixture
from keel.engines.base import Learner, Weighted
from keel.pipeline.faults import Guard
from keel.runs.checkpoint import Snapshot
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally

B = TypeVar("B", bound=Weighted)


def total_steps(config: TrainingConfig, num_rows: int) -> int:
    """Optimiser steps of all epochs; the last one takes what is left."""
    return -(-num_rows * config.epochs // config.batch)


def validation_tally(name: str, learner: Learner[B], batches: Sequence[B]) -> Tally:
    """The learner's statistics on held-out batches, `NAME/…` called `NAME/validation/…`; empty without batches."""
    tally = Tally()
    for metric, (total, weight) in learner.measure(batches).sums.items():
        tally.add(metric.replace(f"{name}/", f"{name}/validation/"), total, weight)
    return tally


def train_epochs(
    config: TrainingConfig,
    learner: Learner[B],
    *,
    mixture: Mixture,
    batches: Callable[[Sequence[int]], list[B]],
    tokens: Callable[[int], Iterable[Sequence[int]]],
    validate: Callable[[], Tally],
    stage: StageRun,
    draws: Draws,
    console: Console,
    shown: Sequence[str],
) -> None:
    """Train from the last checkpoint (or the start) to the end; logs the learner's metrics, `time/step_seconds` and
    `time/validation_seconds`. A callback may end it early.

    `mixture` says how often each row is met, `batches(rows)` gives the micro-batches of the given row numbers,
    `tokens(row)` the ids of all texts of one, `shown` names the metrics of the progress line.
    """
    num_rows = mixture.epoch_size
    total = total_steps(config, num_rows)
    rows_in_all = num_rows * config.epochs
    snapshot = _restore(stage, rows_in_all)
    if snapshot is not None:
        learner.read(snapshot.path, snapshot.step)
    stopped = snapshot is not None and snapshot.state["stopped"]
    skipped = 0 if snapshot is None else snapshot.state.get("skipped", 0)
    guard = Guard(learner, stage, console, limit=config.skip_faults, skipped=skipped)
    latest: dict[str, float] = {}
    for step in range(learner.steps, learner.steps if stopped else total):
        started = time.perf_counter()
        start = step * config.batch
        rows = mixture.batch(draws, "order", batch=min(config.batch, rows_in_all - start), start=start)
        metrics = guard.step(batches(rows), partial(_known, rows, tokens)).means()
        done = step + 1
        metrics["time/step_seconds"] = time.perf_counter() - started
        if done % config.validate_every == 0 or done == total:
            validating = time.perf_counter()
            metrics |= validate().means() | {"time/validation_seconds": time.perf_counter() - validating}
        stage.log(done, metrics)
        leaving = stage.leaving  # looked at once: what comes later finds the checkpoint of the next step
        # A last step that is short of rows is not on the way of a longer run: that one goes on from before it.
        if (
            done % config.checkpoint_every == 0
            or done in (total, rows_in_all // config.batch)
            or stage.stopping
            or leaving
        ):
            short = rows_in_all if done * config.batch > rows_in_all else None
            state = {"rows_if_short": short, "stopped": stage.stopping, "skipped": guard.skipped}
            stage.checkpoint(done, state, learner.write)
        latest |= metrics
        console.progress(stage.name, done, total, {name: latest[name] for name in shown if name in latest})
        if stage.stopping:
            break
        if leaving:
            stage.leave(done)
    if learner.steps < total:
        console.say(f"{stage.name}: ended after {learner.steps} of {total} steps: a callback asked for it.")


def _known(rows: Sequence[int], tokens: Callable[[int], Iterable[Sequence[int]]], ids: tuple[int, ...]) -> str:
    """Which of the minibatch's rows has a text of those ids."""
    found = [row for row in dict.fromkeys(rows) if any(tuple(text) == ids for text in tokens(row))]
    return f"row {found[0] + 1} of the training data" if found else ""


def _restore(stage: StageRun, rows_in_all: int) -> Snapshot | None:
    """The newest checkpoint on the way to `rows_in_all` rows."""
    snapshot = stage.restore()
    if snapshot is not None and snapshot.state["rows_if_short"] not in (None, rows_in_all):
        return stage.restore(before=snapshot.step)
    return snapshot
