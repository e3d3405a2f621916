"""Faults of a step that several processes take: all know of them, and none waits for ever."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from keel.batching import row_batches
from keel.config.training import OptimConfig
from keel.dist import crew
from keel.dist.launcher import Dismissed, Fallen, Lost
from keel.dist.world import joined, world
from keel.engines.base import NumericalFault
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.models.policy import Policy
from keel.records import Sequences
from keel.tally import Tally
from tests.dist.crowd import in_processes
from tests.worlds import random_rows, tiny_lm

ROWS = random_rows([(3, 5), (1, 2), (6, 4), (9, 7), (2, 1), (4, 4)])
BAD = ROWS[4].tokens


def step_in(loss: Callable[..., tuple[Tensor, Tally]], budget: int = 20) -> Callable[[], str]:
    """What a step on the rows ends with, in each of the processes of one job."""

    def work() -> str:
        try:
            with joined(), crew.scope():
                policy = Policy(tiny_lm())
                learner = GradientLearner[Sequences]("sft", policy, loss, OptimConfig(warmup=0.0), total_steps=3)
                batches = row_batches(ROWS, budget)
                assert len(batches) > 2
                crew.lead(lambda: learner.step(batches))
        except NumericalFault as fault:
            rows = [suspect.tokens for suspect in fault.suspects]
            norms = [round(suspect.gradient_norm, 5) for suspect in fault.suspects]
            return f"{fault.problem} {rows} {norms} {learner.steps}"
        except (Dismissed, Fallen, Lost) as error:
            return f"{type(error).__name__} {error}".strip()
        return "nothing"

    return work


def planted(module: nn.Module, batch: Sequences, denominator: float) -> tuple[Tensor, Tally]:
    """A row's loss is NaN, in whatever company and process."""
    loss, tally = sft_loss(module, batch, denominator)
    held = any(tuple(row[: len(BAD)].tolist()) == BAD for row in batch.tokens)
    return (loss * math.nan if held else loss), tally


def test_a_planted_row_is_found_in_whichever_process_had_it() -> None:
    alone = step_in(planted)()
    assert alone == f"loss [({BAD},)] [nan] 0"
    assert in_processes(2, step_in(planted)) == [alone, "Dismissed"]


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_in_one_process_ends_the_job_with_a_sentence(rank: int) -> None:
    def loss(module: nn.Module, batch: Sequences, denominator: float) -> tuple[Tensor, Tally]:
        if world().rank == rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sft_loss(module, batch, denominator)

    found = in_processes(2, step_in(loss))
    assert found[rank].startswith(
        f"Fallen process {rank} of 2 ran out of memory in a step of sft (CUDA out of memory. Tried to allocate 2.00 "
        "GiB); lower its token_budget"
    )
    assert found[1 - rank].startswith(f"Lost process {1 - rank} of 2 lost the others")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_validation_is_repeated_by_all_where_memory_runs_out_in_one(rank: int) -> None:
    def loss(module: nn.Module, batch: Sequences, denominator: float) -> tuple[Tensor, Tally]:
        if world().size > 1 and world().rank == rank and batch.tokens.numel() > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sft_loss(module, batch, denominator)

    def work() -> float:
        with joined(), crew.scope():
            learner = GradientLearner[Sequences]("sft", Policy(tiny_lm()), loss, OptimConfig(), total_steps=3)
            return crew.lead(lambda: learner.measure(row_batches(ROWS, 40)).means()["sft/loss"])

    assert in_processes(2, work) == [pytest.approx(work(), rel=1e-5)] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_any_other_failure_of_one_process_ends_the_job_too(rank: int) -> None:
    def loss(module: nn.Module, batch: Sequences, denominator: float) -> tuple[Tensor, Tally]:
        if world().rank == rank:
            raise ValueError("a mistake of this process alone")
        return sft_loss(module, batch, denominator)

    found = in_processes(2, step_in(loss))
    said = f"Fallen process {rank} of 2 failed in a step of sft (ValueError: a mistake of this process alone)"
    assert found[rank] == said
    assert found[1 - rank].startswith(f"Lost process {1 - rank} of 2 lost the others")
