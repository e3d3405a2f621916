from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.engines.optim import (
    TrainedWeights,
    learning_rate,
    load_optimiser,
    make_optimiser,
    optimiser_tensors,
    set_rate,
)
from keel.errors import UserError


def test_schedule_by_hand() -> None:
    cosine = OptimConfig(lr=0.1, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, step, 10) for step in range(11)]
    # Two steps of warm-up at 1/3 and 2/3, then half a cosine over eight steps.
    expected = [1 / 3, 2 / 3, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0.0]
    assert rates == pytest.approx([0.1 * share for share in expected], abs=1e-7)
    constant = OptimConfig(lr=0.1, schedule="constant", warmup=0.25)
    assert [learning_rate(constant, step, 4) for step in range(4)] == pytest.approx([0.05, 0.1, 0.1, 0.1])


def test_schedule_without_warmup_and_beyond_its_end() -> None:
    config = OptimConfig(lr=0.1, schedule="cosine", warmup=0.0)
    assert learning_rate(config, 0, 1) == 0.1
    assert learning_rate(config, 2, 4) == pytest.approx(0.05)
    assert learning_rate(config, 9, 4) == pytest.approx(0.0)
    assert learning_rate(OptimConfig(lr=0.1, warmup=0.99), 0, 1) == pytest.approx(0.05)


class Body(nn.Module):
    """A matrix and two vectors; `head` is one of a body's usual heads."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 4.0]]))
        self.vector = nn.Parameter(torch.tensor([3.0, -1.0]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.head = nn.Linear(2, 1)

    @property
    def weights(self) -> list[Tensor]:
        return [self.matrix, self.vector, self.head.weight, self.head.bias]


CONFIG = OptimConfig(lr=0.01, betas=(0.9, 0.95), weight_decay=0.5)


def stepped(module: Body, gradients: list[float], *, head_lr_scale: float, rate: float = 0.01) -> torch.optim.AdamW:
    head = {"head.weight", "head.bias"}
    optimiser = make_optimiser(TrainedWeights(module), CONFIG, head=head, head_lr_scale=head_lr_scale)
    for gradient in gradients:
        for weight in module.weights:
            weight.grad = torch.full_like(weight, gradient)
        set_rate(optimiser, rate)
        optimiser.step()
    return optimiser


def adamw(weight: float, gradients: list[float], rate: float, decay: float) -> float:
    """Loshchilov and Hutter (2019), algorithm 2, for one number."""
    first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        weight -= rate * decay * weight
        weight -= rate * (first / (1 - 0.9**t)) / (math.sqrt(second / (1 - 0.95**t)) + 1e-8)
    return weight


def test_steps_are_adamw_and_the_head_alone_is_faster() -> None:
    module, gradients = Body(), [0.3, -2.0, 0.7]
    before = [weight.detach().clone() for weight in module.weights]
    stepped(module, gradients, head_lr_scale=5.0)
    for weight, old, rate, decay in zip(
        module.weights, before, [0.01, 0.01, 0.05, 0.05], [0.5, 0.0, 0.5, 0.0], strict=True
    ):  # matrices decay, vectors do not
        expected = [adamw(number, gradients, rate, decay) for number in old.flatten().tolist()]
        assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(module.frozen, torch.ones(2))


def test_state_goes_to_another_optimiser_and_replaces_what_was_there() -> None:
    source, target = Body(), Body()
    saved = optimiser_tensors(TrainedWeights(source), stepped(source, [0.3, -2.0], head_lr_scale=5.0))
    assert sorted(saved) == sorted(
        f"{key}.{name}"
        for key in ("step", "exp_avg", "exp_avg_sq")
        for name in ("matrix", "vector", "head.weight", "head.bias")
    )
    optimiser = stepped(target, [9.0], head_lr_scale=5.0)
    weights = TrainedWeights(target)
    load_optimiser(weights, optimiser, saved)
    restored = optimiser_tensors(weights, optimiser)
    assert all(torch.equal(restored[name], tensor) for name, tensor in saved.items())
    load_optimiser(weights, optimiser, {})
    assert optimiser_tensors(weights, optimiser) == {}


# --- weights in bfloat16 ---


class Rough(nn.Module):
    """Two weights in bfloat16 and one in float32; the loss is their sum times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.rough = nn.Parameter(torch.tensor([[1.0, -4.0]], dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.ones(1, dtype=torch.bfloat16), requires_grad=False)
        self.exact = nn.Parameter(torch.tensor([3.0]))

    def backward(self, *slopes: float) -> None:
        for slope in slopes:
            torch.autograd.backward((self.rough * slope).sum().float() + self.exact.sum() * slope)


def rough_optimiser(module: nn.Module) -> tuple[TrainedWeights, torch.optim.AdamW]:
    weights = TrainedWeights(module)
    return weights, make_optimiser(weights, OptimConfig(betas=(0.9, 0.95), weight_decay=0.5), head=(), head_lr_scale=1)


def test_small_steps_of_bfloat16_weights_are_not_lost() -> None:
    """A step of 1e-4 from 1 is a fortieth of what bfloat16 can tell there; eighty of them are two places."""
    module, gradients = Rough(), [0.5] * 80
    weights, optimiser = rough_optimiser(module)
    for _ in gradients:
        module.backward(0.5)
        set_rate(optimiser, 1e-4)
        optimiser.step()
        weights.write_back()
        optimiser.zero_grad()
    expected = [adamw(start, gradients, 1e-4, 0.5) for start in (1.0, -4.0)]
    assert weights.named["rough"].flatten().tolist() == pytest.approx(expected, abs=2e-5)
    assert module.rough.flatten().tolist() == torch.tensor(expected).to(torch.bfloat16).tolist()
    assert expected[0] == pytest.approx(0.988, abs=1e-3)
    assert float(module.rough.detach()[0, 0]) == 0.98828125
    assert module.exact.item() == pytest.approx(adamw(3.0, gradients, 1e-4, 0.0), abs=2e-5)  # a vector
    assert module.rough.dtype == torch.bfloat16
    assert torch.equal(module.frozen, torch.ones(1, dtype=torch.bfloat16))


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    """In bfloat16 256 + 1 is 256."""
    module = Rough()
    weights, optimiser = rough_optimiser(module)
    module.backward(256.0, *[1.0] * 9)
    assert weights.named.keys() == {"rough", "exact"}
    for weight in weights.named.values():
        assert weight.grad is not None
        assert set(weight.grad.flatten().tolist()) == {265}
    assert module.rough.grad is None
    optimiser.zero_grad()
    module.backward(2.0)
    again = weights.named["rough"].grad
    assert again is not None
    assert again.tolist() == [[2.0, 2.0]]


def test_a_bfloat16_model_goes_on_to_the_bit() -> None:
    def step(module: Rough, weights: TrainedWeights, optimiser: torch.optim.AdamW, slope: float) -> None:
        module.backward(slope)
        set_rate(optimiser, 0.03)
        optimiser.step()
        weights.write_back()
        optimiser.zero_grad()

    alone = Rough()
    weights, optimiser = rough_optimiser(alone)
    for slope in (0.3, -2.0):
        step(alone, weights, optimiser, slope)
    saved = {name: weight.detach().clone() for name, weight in weights.named.items()}
    state = {name: tensor.clone() for name, tensor in optimiser_tensors(weights, optimiser).items()}
    assert saved["rough"].dtype == torch.float32  # what the model itself holds would not do
    assert not torch.equal(saved["rough"], alone.rough.float())
    assert not torch.equal(alone.rough, Rough().rough)

    resumed = Rough()
    again, its_optimiser = rough_optimiser(resumed)
    for name, copy in again.named.items():
        copy.data.copy_(saved[name])
    again.write_back()
    load_optimiser(again, its_optimiser, state)
    assert torch.equal(resumed.rough, alone.rough)
    for slope in (0.7, 0.1):
        step(alone, weights, optimiser, slope)
        step(resumed, again, its_optimiser, slope)
    for name, weight in weights.named.items():
        assert torch.equal(again.named[name], weight)
    assert torch.equal(resumed.rough, alone.rough)
    assert torch.equal(resumed.exact, alone.exact)


def test_another_models_weights_are_refused() -> None:
    weights = TrainedWeights(Rough())
    with pytest.raises(UserError, match="the checkpoint holds other weights than this configuration trains"):
        weights.require_names({"rough": torch.zeros(1, 2)})
    with pytest.raises(UserError, match="the checkpoint holds other weights than this configuration trains"):
        weights.require_names({"rough": torch.zeros(2, 2), "exact": torch.zeros(1)})
