"""Torch: its device, whether numbers come out finite, and a feeling for the speed."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from keel.doctor.finding import Finding, bad, good, note
from keel.models.load import resolve_device
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm
from keel.records import Sequences

_GIB = 2**30
_ROWS, _TOKENS = 8, 64  # of the batch that is timed
_ROUNDS = 2


def check_computing() -> list[Finding]:
    """The device that `auto` takes, bf16 on it, and a training step of the demo's model."""
    device = resolve_device("auto")
    return [describe(device), check_bf16(device), check_step(device)]


def describe(device: torch.device) -> Finding:
    threads = torch.get_num_threads()
    said = f"{device.type}, torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        said += f", {torch.cuda.get_device_name(device)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    return good("device", said)


def check_bf16(device: torch.device) -> Finding:
    """Whether a product in bfloat16 is right; it may still be slow where the hardware has no units for it."""
    numbers = torch.arange(16.0, device=device).reshape(4, 4)
    try:
        product = (numbers.bfloat16() @ numbers.bfloat16()).float()
    except RuntimeError as error:
        return note("bf16", f"not on this device ({error}): stay with float32")
    if not torch.allclose(product, numbers @ numbers, rtol=0.01):
        return note("bf16", "wrong on this device: stay with float32")
    slow = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return note("bf16", "emulated, so slow: stay with float32") if slow else good("bf16", "works")


def check_step(device: torch.device) -> Finding:
    """Forward and backward of a model of 0.9 million parameters: finite, and how many tokens a second."""
    backbone = scratch_causal_lm(
        hidden=128, layers=4, heads=4, intermediate=None, vocab=1024, context=128, eos_id=0, seed=0
    )
    policy = Policy(backbone).to(device)
    tokens = (torch.arange(_ROWS * _TOKENS) % 1024).reshape(_ROWS, _TOKENS).to(device)
    _step(policy, tokens)  # the first is slower
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        finite = _step(policy, tokens)
    seconds = time.perf_counter() - start
    if not finite:
        return bad(
            "training step", f"loss or gradient is not finite on {device.type}", "try another torch, or --device"
        )
    rate = _ROUNDS * tokens.numel() / seconds
    return good("training step", f"finite; {rate:,.0f} tokens a second on the demo's model of 0.9 million parameters")


def _step(policy: Policy, tokens: Tensor) -> bool:
    """One forward and backward; True if loss and gradients are finite. Waits for the device."""
    nn.Module.zero_grad(policy)
    rows, length = tokens.shape
    prompts = torch.ones(rows, dtype=torch.long, device=tokens.device)
    mask = torch.ones(rows, length - 1, dtype=torch.bool, device=tokens.device)
    logprobs = policy(Sequences(tokens, prompts, mask)).logprobs
    assert logprobs is not None
    loss = -logprobs.mean()
    loss.backward()
    gradients = [parameter.grad.abs().sum() for parameter in policy.parameters() if parameter.grad is not None]
    return bool(torch.stack([loss, *gradients]).isfinite().all())
