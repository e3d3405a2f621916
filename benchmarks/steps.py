"""Keel's side where a round is some optimiser steps on given rows: sft, the reward model, dpo."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measure import Round, Side, Stopwatch, rounds_of
from benchmarks.models import Size, random_texts

BATCH, SHORTEST, LONGEST = 32, 20, 128
STEPS = 3  # a round, where one is short


def texts_for(
    options: argparse.Namespace, size: Size, steps: int, shortest: int, longest: int, part: int = 0
) -> list[list[int]]:
    """Token ids for every step of every round, the one that warms up included; `part` tells columns apart."""
    count = BATCH * steps * (options.rounds + 1)
    return random_texts(count, shortest, longest, size.vocab, 10 * options.seed + part)


def rounds_of_steps(
    spec: Mapping[str, Any],
    learner: Any,
    loss: str,
    batches: Callable[[Sequence[int]], list[Any]],
    done: Callable[[Sequence[int]], dict[str, float]],
) -> Side:
    """All rounds: `batches` makes the micro-batches of the given rows, `done` says what work they are."""
    from benchmarks.keel_side import versions

    losses: list[float] = []

    def one_round(number: int) -> Round:
        before, watch = learner.steps, Stopwatch()
        first, size = number * spec["steps"], spec["batch"]
        for step in range(first, first + spec["steps"]):
            tally = learner.step(batches(range(step * size, (step + 1) * size)))
            losses.append(tally.means()[loss])
        seconds = watch.lap()
        rows = range(first * size, (first + spec["steps"]) * size)
        return Round(seconds, {**done(rows), "optimiser steps": learner.steps - before})

    rounds = rounds_of(one_round, spec["rounds"])
    return Side("keel", rounds, peak_memory=0, first_loss=losses[0], versions=versions())
