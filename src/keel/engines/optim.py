"""AdamW, its schedule, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from keel.config.training import OptimConfig

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def make_optimiser(
    module: nn.Module, config: OptimConfig, *, head: nn.Module | None, head_lr_scale: float
) -> torch.optim.AdamW:
    """AdamW over all trainable weights; a new `head` learns at `head_lr_scale` times the rate.

    Vectors (biases, norms) are not decayed.
    """
    head_ids = {id(weight) for weight in head.parameters()} if head is not None else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for weight in module.parameters():
        if weight.requires_grad:
            groups.setdefault((id(weight) in head_ids, weight.ndim >= 2), []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": weights,
                "weight_decay": config.weight_decay if matrix else 0.0,
                "scale": head_lr_scale if is_head else 1.0,
            }
            for (is_head, matrix), weights in groups.items()
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


def optimiser_tensors(module: nn.Module, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of every weight, by its name; empty before the first step."""
    return {
        f"{key}.{name}": optimiser.state[weight][key]
        for name, weight in module.named_parameters()
        if weight in optimiser.state
        for key in _MOMENTS
    }


def load_optimiser(module: nn.Module, optimiser: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave, and nothing else."""
    optimiser.state.clear()
    for name, weight in module.named_parameters():
        if f"step.{name}" in tensors:
            optimiser.state[weight] = {key: tensors[f"{key}.{name}"].to(weight.device, copy=True) for key in _MOMENTS}
