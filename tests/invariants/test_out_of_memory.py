"""A step that runs out of memory is repeated in smaller micro-batches, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.engines.base import NumericalFault
from keel.engines.learner import GradientLearner
from keel.errors import UserError
from keel.microbatches import padded_tokens, tokens_of, units_of
from keel.records import Sequences
from keel.tally import Tally
from tests.engines.helpers import distance
from tests.invariants.test_microbatches import CASES, NORMAL, ROWS, Case

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "mps": RuntimeError("MPS backend out of memory"),
    "python": MemoryError(),
}


class Tight:
    """A loss that has memory for so many padded tokens at a time, and takes some of the gradient before it fails."""

    def __init__(self, loss: Callable[..., Any], room: int, error: Exception = ERRORS["cuda"]) -> None:
        self.loss = loss
        self.room = room
        self.error = error
        self.seen: list[int] = []

    def __call__(self, module: nn.Module, batch: Any, denominator: float) -> tuple[Tensor, Tally]:
        self.seen.append(padded_tokens(batch))
        if padded_tokens(batch) > self.room:
            raise self.error
        result: tuple[Tensor, Tally] = self.loss(module, batch, denominator)
        return result


def learner_of(case: Case, loss: Callable[..., Any], say: Callable[[str], None] = print) -> GradientLearner[Any]:
    return GradientLearner("x", case.module, loss, OptimConfig(lr=1e-3, warmup=0.0), total_steps=9, say=say)


def state(learner: GradientLearner[Any]) -> tuple[Tensor, Tensor]:
    """All weights, and what the optimiser has seen of their gradients."""
    weights = list(learner.weights.named.values())
    moments = [learner.optimiser.state[weight]["exp_avg"] for weight in weights if weight in learner.optimiser.state]
    return tuple(torch.cat([one.detach().double().flatten() for one in part]) for part in (weights, moments or weights))  # type: ignore[return-value]  # of two


@pytest.mark.parametrize("kind", CASES)
def test_the_result_is_that_of_a_step_that_was_not_cut(kind: str) -> None:
    whole, cut = CASES[kind]("gpt2"), CASES[kind]("gpt2")
    uncut = learner_of(whole, whole.loss)
    start, _ = state(uncut)
    expected = uncut.step(whole.batches(100_000, NORMAL)).means()
    said: list[str] = []
    room = max(padded_tokens(one) for one in cut.batches(1, NORMAL))  # for any unit alone
    tight = Tight(cut.loss, room)
    learner = learner_of(cut, tight, said.append)
    assert learner.step(cut.batches(100_000, NORMAL)).means() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    (weights, moments), (uncut_weights, uncut_moments) = state(learner), state(uncut)
    assert float((uncut_weights - start).norm()) > 1e-3
    assert distance(moments, uncut_moments) < 1e-6
    torch.testing.assert_close(weights, uncut_weights, rtol=0, atol=1e-6)
    failed = [size for size in tight.seen if size > room]
    assert len(said) == len(failed) > 0


def test_the_smaller_budget_stays_and_is_told() -> None:
    case, said = CASES["sft"]("gpt2"), list[str]()
    (batch,) = case.batches(100_000, NORMAL)
    tight = Tight(case.loss, 40)
    learner = learner_of(case, tight, said.append)
    assert padded_tokens(batch) == 8 * 16
    learner.step([batch])
    assert [sizes for sizes in tight.seen if sizes > 40] == [128, 64]  # 64, then 32
    tight.seen.clear()
    learner.step([batch])
    assert max(tight.seen) <= 32
    assert sum(tight.seen) <= 128
    assert len(said) == 2
    assert said[1].startswith("x: warning: out of memory in step 1 (CUDA out of memory. Tried to allocate 2.00 GiB); ")
    assert "at most 32 padded tokens a micro-batch" in said[1]
    assert "token_budget: 32" in said[1]


@pytest.mark.parametrize("kind", CASES)
def test_a_validation_that_was_cut_finds_the_same(kind: str) -> None:
    case = CASES[kind]("gpt2")
    batches = case.batches(100_000, NORMAL)
    expected = learner_of(case, case.loss).measure(batches).means()
    said: list[str] = []
    room = max(padded_tokens(one) for one in case.batches(1, NORMAL))
    learner = learner_of(case, Tight(case.loss, room), said.append)
    assert learner.measure(batches).means() == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert said[0].startswith("x: warning: out of memory in a validation after step 0 (CUDA out of memory.")


def test_a_validation_of_which_not_one_row_fits_ends_in_a_sentence() -> None:
    case = CASES["sft"]("gpt2")
    with pytest.raises(UserError, match="out of memory in a validation after step 0 with one row at a time"):
        learner_of(case, Tight(case.loss, 0)).measure(case.batches(100_000, NORMAL))


def test_the_smaller_budget_is_in_the_checkpoint_so_what_goes_on_is_bitwise_the_same(tmp_path: Path) -> None:
    cases = [CASES["sft"]("gpt2") for _ in range(2)]
    (batch,) = cases[0].batches(100_000, NORMAL)
    first = learner_of(cases[0], Tight(cases[0].loss, 40))
    first.step([batch])
    first.write(tmp_path)
    seen = Tight(cases[1].loss, 1000)  # where memory has come back
    second = learner_of(cases[1], seen)
    second.read(tmp_path, 1)
    for learner in (first, second):
        learner.step([batch])
    assert max(seen.seen) <= 32
    assert all(torch.equal(one, other) for one, other in zip(state(first), state(second), strict=True))


@pytest.mark.parametrize("error", ERRORS)
def test_on_every_device(error: str) -> None:
    case = CASES["sft"]("gpt2")
    learner = learner_of(case, Tight(case.loss, 64, ERRORS[error]))
    learner.step(case.batches(100_000, NORMAL))
    assert learner.steps == 1


def test_another_error_is_not_taken_for_it() -> None:
    case = CASES["sft"]("gpt2")
    tight = Tight(case.loss, 64, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        learner_of(case, tight).step(case.batches(100_000, NORMAL))
    assert len(tight.seen) == 1


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_where_not_even_one_row_fits_it_ends_in_a_sentence(kind: str) -> None:
    case = CASES[kind]("gpt2")
    tight = Tight(case.loss, 0)
    learner = learner_of(case, tight)
    before = state(learner)
    (batch,) = case.batches(100_000, NORMAL)
    with pytest.raises(UserError, match=r"out of memory in step 1 with one row at a time .*gradient_checkpointing"):
        learner.step([batch])
    assert min(tight.seen) < padded_tokens(batch) / len(units_of(batch)) * 2
    assert torch.equal(state(learner)[0], before[0])
    assert learner.steps == 0
    assert all(weight.grad is None for weight in case.module.parameters())


def test_where_the_optimisers_state_does_not_fit_it_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sft"]("gpt2")
    learner = learner_of(case, case.loss)

    def full() -> None:
        raise ERRORS["cuda"]

    monkeypatch.setattr(learner.optimiser, "step", full)
    with pytest.raises(UserError, match=r"for the optimiser's state in step 1 \(CUDA .* model\.tune: lora"):
        learner.step(case.batches(100_000, NORMAL))
    assert learner.steps == 0


def test_a_loss_that_is_not_finite_is_found_among_the_parts() -> None:
    case = CASES["sft"]("gpt2")
    shortest = min(ROWS, key=lambda row: len(row.tokens))

    def spoilt(module: nn.Module, batch: Any, denominator: float) -> tuple[Tensor, Tally]:
        loss, tally = case.loss(module, batch, denominator)
        held = any(tokens_of(batch, row) == shortest.tokens for row in range(len(batch)))
        return (loss * torch.nan if held else loss), tally

    with pytest.raises(NumericalFault) as raised:
        learner_of(case, Tight(spoilt, 40)).step(case.batches(100_000, NORMAL))
    (found,) = raised.value.suspects
    assert found.tokens == (shortest.tokens,)
    (batch,) = raised.value.batches
    assert tokens_of(batch, found.rows[0]) == shortest.tokens


def test_what_was_not_gathered_in_when_memory_ran_out_is_dropped() -> None:
    """Of a model in bfloat16: gradients go from the model's own weights to float32 copies, and memory ends there."""
    made = []
    for fails in (False, True):
        module = nn.Linear(3, 1, bias=False).to(torch.bfloat16)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        failures = [fails]

        def loss(
            module: nn.Module, batch: Any, denominator: float, failures: list[bool] = failures
        ) -> tuple[Tensor, Tally]:
            weight: Any = module.weight
            if failures.pop() if failures else False:
                weight.grad = torch.full_like(weight, 7.0)
                raise ERRORS["cuda"]
            return (weight.float() * batch.tokens.float()).sum() / denominator, Tally()

        learner: GradientLearner[Any] = GradientLearner(
            "x", module, loss, OptimConfig(lr=1e-1, warmup=0.0), total_steps=2, say=lambda text: None
        )
        batch = Sequences(torch.tensor([[1, 2, 4], [2, 1, 1]]), torch.tensor([1, 1]), torch.ones(2, 2).bool())
        made.append((learner.step([batch]).means()["x/grad_norm"], state(learner)[1].tolist()))
    assert made[0] == made[1]
