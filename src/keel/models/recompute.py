"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from keel.errors import UserError
from keel.models.adapters import active_adapter, using


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """While the context lasts, what needs a gradient keeps only the input of each layer.

    transformers ties this to training mode, which Keel never enters: only the layers are told that they train, and
    only until their own forward begins, for some (OPT, Falcon) look at it there to apply dropout.
    Raises UserError for a model that has no layers of that kind.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{type(model).__name__} cannot recompute its layers; leave gradient_checkpointing out")
    if not torch.is_grad_enabled():
        yield
        return

    def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), using(model, active_adapter(model))  # which may be off by the time of the backward

    def runner(layer: Any) -> Callable[..., Any]:
        def run(forward: Callable[..., Any], *args: Any) -> Any:
            layer.training = False
            try:
                return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=again)
            finally:
                layer.training = True

        return run

    for layer in layers:
        layer.gradient_checkpointing, layer.training = True, True
        layer._gradient_checkpointing_func = runner(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = False, False
