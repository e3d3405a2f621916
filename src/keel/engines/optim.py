"""AdamW, its schedule, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig
from keel.dist.fsdp import sharded
from keel.errors import UserError

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainedWeights:
    """What an optimiser moves, by name: the module's own weights, or float32 copies of those in a lower precision.

    A step of bfloat16 weights is mostly smaller than their rounding, so it is taken on the copies, which also gather
    the gradients of the micro-batches.
    """

    def __init__(self, module: nn.Module) -> None:
        self._own = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.named: dict[str, nn.Parameter] = {}
        for name, weight in self._own.items():
            if weight.dtype not in (torch.bfloat16, torch.float16):
                self.named[name] = weight
            else:
                copy = self.named[name] = nn.Parameter(weight.detach().float())
                leaf: Any = weight  # the hook is untyped
                leaf.register_post_accumulate_grad_hook(_gather_in(copy))

    def write_back(self) -> None:
        """Give the module what its copies hold."""
        with torch.no_grad():
            for name, copy in self.named.items():
                if copy is not self._own[name]:
                    self._own[name].copy_(copy)

    def drop_gradients(self) -> None:
        """Also those that a hook did not come to gather in."""
        for name, weight in self._own.items():
            weight.grad = self.named[name].grad = None

    def require_names(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises UserError where the tensors are those of another model."""
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: weight.shape for name, weight in self.named.items()
        }:
            raise UserError("the checkpoint holds other weights than this configuration trains")


def _gather_in(copy: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        if copy.grad is None:
            copy.grad = gradient
        else:
            copy.grad += gradient
        weight.grad = None

    return hook


def make_optimiser(
    weights: TrainedWeights, config: OptimConfig, *, head: Collection[str], head_lr_scale: float
) -> torch.optim.AdamW:
    """AdamW over the weights; those named in `head`, which are new, learn at `head_lr_scale` times the rate.

    Vectors (biases, norms) are not decayed.
    """
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, weight in weights.named.items():  # the fused kernel takes shards or whole weights, not both
        groups.setdefault((name in head, weight.ndim >= 2, sharded(weight)), []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "weight_decay": config.weight_decay if matrix else 0.0,
                "scale": head_lr_scale if is_head else 1.0,
            }
            for (is_head, matrix, _), members in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then constant or a cosine to 0."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimiser: torch.optim.AdamW, rate: float) -> None:
    """Give every group its rate for the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def optimiser_tensors(weights: TrainedWeights, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of every weight, by its name; empty before the first step."""
    return {
        f"{key}.{name}": optimiser.state[weight][key]
        for name, weight in weights.named.items()
        if weight in optimiser.state
        for key in _MOMENTS
    }


def empty_optimiser_tensors(weights: TrainedWeights, known: Collection[str]) -> dict[str, Tensor]:
    """Zeros in the place of those tensors of `optimiser_tensors` whose names are known, to be filled."""
    return {
        f"{key}.{name}": torch.zeros((), device=weight.device) if key == "step" else torch.zeros_like(weight.detach())
        for name, weight in weights.named.items()
        for key in _MOMENTS
        if f"{key}.{name}" in known
    }


def load_optimiser(weights: TrainedWeights, optimiser: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Take these for what `optimiser_tensors` gave, and nothing else."""
    optimiser.state.clear()
    for name, weight in weights.named.items():
        if f"step.{name}" in tensors:
            optimiser.state[weight] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}
