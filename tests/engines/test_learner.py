from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from keel.batching import row_batches
from keel.config.training import OptimConfig
from keel.engines.base import NumericalFault
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.errors import UserError
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm
from keel.records import Sequences
from keel.runs import checkpoint
from keel.tally import Tally
from tests.worlds import random_rows, with_critic


@dataclass(frozen=True)
class Slope:
    """A micro-batch whose loss is `gradient` times the sum of all weights, times its own weight."""

    gradient: float
    weight: float = 1.0


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 4.0]]))
        self.head = nn.Linear(1, 1, bias=False)
        self.dropout = nn.Dropout(0.5)


def slope_loss(module: nn.Module, batch: Slope, denominator: float) -> tuple[Tensor, Tally]:
    total = batch.gradient * batch.weight * sum(weight.sum() for weight in module.parameters())
    assert isinstance(total, Tensor)
    tally = Tally()
    tally.add("toy/gradient", batch.gradient * batch.weight, batch.weight)
    return total / denominator, tally


def toy_learner(config: OptimConfig | None = None, **options: Any) -> tuple[Toy, GradientLearner[Slope]]:
    torch.manual_seed(0)
    module = Toy()
    config = config or OptimConfig(lr=0.01, schedule="constant", warmup=0.0, max_grad_norm=1e6)
    return module, GradientLearner[Slope]("toy", module, slope_loss, config, total_steps=10, **options)


def copy_of(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def assert_untouched(learner: GradientLearner[Slope], before: list[Tensor], steps: int = 0) -> None:
    for weight, old in zip(learner.module.parameters(), before, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
    assert learner.steps == steps
    assert len(learner.optimiser.state) == (0 if steps == 0 else len(before))


def test_the_denominator_is_the_whole_minibatch() -> None:
    _, learner = toy_learner()
    seen: list[float] = []

    def note(tally: Tally) -> None:
        seen.extend(
            weight.grad.flatten()[0].item() for weight in learner.module.parameters() if weight.grad is not None
        )

    tally = learner.step([Slope(2.0, 1.0), Slope(-1.0, 3.0)], note)
    assert seen == pytest.approx([(2.0 - 3.0) / 4] * 2)
    assert tally.means()["toy/gradient"] == pytest.approx(-0.25)
    assert learner.steps == 1


def test_gradients_are_clipped_and_their_raw_norm_is_reported() -> None:
    config = OptimConfig(lr=0.01, warmup=0.0, max_grad_norm=0.5, betas=(0.9, 0.95))
    module, learner = toy_learner(config)
    tally = learner.step([Slope(2.0)])
    assert tally.means()["toy/grad_norm"] == pytest.approx(math.sqrt(5) * 2.0)  # five weights
    moments = torch.cat([learner.optimiser.state[weight]["exp_avg"].flatten() for weight in module.parameters()])
    assert float(moments.norm()) == pytest.approx(0.1 * 0.5, rel=1e-5)  # (1 - beta1) times the clipped gradient


def test_the_rate_follows_the_schedule_and_is_reported() -> None:
    config = OptimConfig(lr=0.1, schedule="cosine", warmup=0.2)
    _, learner = toy_learner(config)
    rates = [learner.step([Slope(1.0)]).means()["toy/lr"] for _ in range(4)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.0961940], abs=1e-7)


def test_a_faster_head_reaches_the_head_only() -> None:
    torch.manual_seed(0)
    module = Toy()
    config = OptimConfig(lr=0.01, schedule="constant", warmup=0.0)
    learner = GradientLearner[Slope](
        "toy", module, slope_loss, config, total_steps=10, head=tuple(module.head.parameters()), head_lr_scale=7.0
    )
    body, head = copy_of(module)
    learner.step([Slope(1.0)])
    assert torch.allclose(body - module.body, torch.tensor(0.01))  # Adam's first step is the rate
    assert torch.allclose(head - module.head.weight, torch.tensor(0.07))


def test_dropout_stays_off() -> None:
    module, learner = toy_learner()
    learner.step([Slope(1.0)])
    assert not module.dropout.training


@pytest.mark.parametrize("bad", [math.nan, math.inf, 4e37])
def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_move(bad: float) -> None:
    module, learner = toy_learner()
    learner.step([Slope(1.0)])
    before, state = copy_of(module), moments_of(learner)
    problem = "gradient" if bad == 4e37 else "loss"  # whose norm alone is beyond float32
    sentence = rf"^toy: the {problem} of step 2 is not finite \(toy/gradient .*\); the weights were left as they were$"
    with pytest.raises(NumericalFault, match=sentence):
        learner.step([Slope(1.0), Slope(bad, 2.0)])
    assert_untouched(learner, before, steps=1)
    assert state
    assert all(torch.equal(moments_of(learner)[name], tensor) for name, tensor in state.items())


def refuse(tally: Tally) -> None:
    raise UserError(f"refused at {tally.means()['toy/gradient']}")


def broken(module: nn.Module, batch: Slope, denominator: float) -> tuple[Tensor, Tally]:
    if batch.gradient < 0:
        raise ZeroDivisionError
    return slope_loss(module, batch, denominator)


@pytest.mark.parametrize("cause", ["check", "loss"])
def test_whatever_raises_leaves_weights_and_gradients_clean(cause: str) -> None:
    module, learner = toy_learner()
    before = copy_of(module)
    if cause == "check":
        with pytest.raises(UserError, match=r"refused at 5\.0"):
            learner.step([Slope(5.0)], refuse)
    else:
        learner.loss = broken
        with pytest.raises(ZeroDivisionError):
            learner.step([Slope(5.0), Slope(-1.0)])
    assert_untouched(learner, before)
    # What was left behind must not reach the next step either.
    learner.step([Slope(2.0)])
    other, fresh = toy_learner()
    fresh.step([Slope(2.0)])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_measure_learns_nothing() -> None:
    module, learner = toy_learner()
    before = copy_of(module)
    tally = learner.measure([Slope(2.0, 1.0), Slope(-1.0, 3.0)])
    assert tally.means() == pytest.approx({"toy/gradient": -0.25})
    assert_untouched(learner, before)


def tied_policy(seed: int = 5) -> Policy:
    """A model from nothing: its embeddings are tied to its head."""
    shape: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "intermediate": None, "vocab": 50, "context": 32}
    policy = with_critic(scratch_causal_lm(**shape, eos_id=0, seed=seed))
    backbone: Any = policy.backbone
    assert backbone.lm_head.weight is backbone.model.embed_tokens.weight
    return policy


def tied_learner(seed: int = 5) -> GradientLearner[Sequences]:
    policy = tied_policy(seed)
    config = OptimConfig(lr=1e-2, warmup=0.3, weight_decay=0.1)
    return GradientLearner[Sequences](
        "sft",
        policy,
        sft_loss,
        config,
        total_steps=6,
        head=policy.critic.trained() if policy.critic else (),
        head_lr_scale=3.0,
    )


def minibatch(step: int) -> list[Sequences]:
    return row_batches(random_rows([(2, 5), (1, 3), (4, 4)], vocab=50, seed=step), token_budget=14)


def same(first: GradientLearner[Sequences], second: GradientLearner[Sequences]) -> bool:
    one, two = ({**dict(each.module.named_parameters()), **moments_of(each)} for each in (first, second))
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def moments_of(learner: GradientLearner[Any]) -> dict[str, Tensor]:
    """Of the optimiser, copied, by the order of its weights."""
    weights = [weight for group in learner.optimiser.param_groups for weight in group["params"]]
    state = learner.optimiser.state
    return {f"{n}.{key}": value.clone() for n, one in enumerate(weights) for key, value in state.get(one, {}).items()}


@pytest.mark.parametrize("interrupted_at", [0, 1, 4])
def test_a_checkpoint_goes_on_bitwise(interrupted_at: int, tmp_path: Path) -> None:
    whole = tied_learner()
    metrics = [whole.step(minibatch(step)).means() for step in range(6)]

    begun = tied_learner()
    for step in range(interrupted_at):
        begun.step(minibatch(step))
    path = checkpoint.save(tmp_path, interrupted_at, {"steps": begun.steps}, begun.write)
    snapshot = checkpoint.load(path)
    resumed = tied_learner(seed=6)  # whatever it was before: other weights, and a step taken
    resumed.step(minibatch(9))
    resumed.read(snapshot.path, snapshot.state["steps"])
    assert same(resumed, begun)
    assert resumed.steps == interrupted_at
    backbone: Any = resumed.module.backbone
    assert backbone.lm_head.weight is backbone.model.embed_tokens.weight
    assert [resumed.step(minibatch(step)).means() for step in range(interrupted_at, 6)] == metrics[interrupted_at:]
    assert same(resumed, whole)


def test_a_checkpoint_of_another_model_is_refused_before_anything_moves(tmp_path: Path) -> None:
    tied_learner().write(tmp_path)
    module, learner = toy_learner()
    learner.step([Slope(1.0)])
    before = copy_of(module)
    with pytest.raises(UserError, match="the checkpoint holds other weights than this configuration trains"):
        learner.read(tmp_path, 0)
    assert_untouched(learner, before, steps=1)


def test_a_checkpoint_in_the_earlier_form_is_called_that(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="was written by an earlier version of Keel, in another form"):
        tied_learner().read(tmp_path, 1)


def test_the_loss_falls_on_the_same_rows() -> None:
    learner = tied_learner()
    losses = [learner.step(minibatch(0)).means()["sft/loss"] for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.2
    assert learner.measure(minibatch(0)).means()["sft/loss"] < losses[-1]
