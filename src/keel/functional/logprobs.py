"""Log-probabilities of given tokens, and the exact entropy, without a copy of the logits.

A language model's logits are its largest tensor. Both passes walk over them in chunks of rows and reuse one float
buffer, so beyond the logits (and, in the backward pass, their gradient) never more than `chunk_tokens` x V floats live.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def logprobs_and_entropy(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_tokens: int = 512
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, in nats: two tensors [N].

    `logits` [N, V], any float type, -inf for a token that cannot be drawn; `targets` [N] int64. With
    p = softmax(logits / temperature): log p[target], and H = -sum over the vocabulary of p log p, not
    over the drawn tokens. The results are float32, or float64 for float64 logits; both are differentiable, once.
    ValueError for temperature <= 0, chunk_tokens < 2, or shapes that do not fit.
    """
    logprobs, entropy = _row_statistics(logits, targets, temperature, chunk_tokens, with_entropy=True)
    assert entropy is not None
    return logprobs, entropy


def token_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_tokens: int = 512) -> Tensor:
    """The log-probabilities [N] of `logprobs_and_entropy` alone, without the work for the entropy."""
    logprobs, _ = _row_statistics(logits, targets, temperature, chunk_tokens, with_entropy=False)
    return logprobs


def row_chunks(num_rows: int, size: int) -> Iterator[slice]:
    """Slices that cut `num_rows` rows into chunks of at most `size`."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def scaled_copy(logits: Tensor, temperature: float) -> Tensor:
    """A copy of `logits` divided by `temperature`, float64 if they are, else float32."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(dtype, copy=True).div_(temperature)


def _row_statistics(
    logits: Tensor, targets: Tensor, temperature: float, chunk_tokens: int, *, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_tokens < 2:
        raise ValueError(f"chunk_tokens must be at least 2, got {chunk_tokens}")
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"need logits [N, V] and targets [N], got {tuple(logits.shape)} and {tuple(targets.shape)}")
    logprobs, entropy = _RowStatistics.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        logits, targets, temperature, chunk_tokens, with_entropy
    )
    return logprobs, entropy


class _RowStatistics(torch.autograd.Function):
    """Saves the logits and, for each row, log-sum-exp and entropy: what the backward pass rebuilds p from."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, chunk_tokens: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logprobs = logits.new_empty(len(targets), dtype=dtype)
        log_partition = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        for rows in row_chunks(len(targets), chunk_tokens):
            logprobs[rows], log_partition[rows], chunk_entropy = _chunk_statistics(
                logits[rows], targets[rows], temperature, with_entropy
            )
            if entropy is not None and chunk_entropy is not None:
                entropy[rows] = chunk_entropy
        ctx.save_for_backward(logits, targets, log_partition, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, None, None, None, None]:
        """d log p[y] / dz = onehot(y) - p and dH / dz = -p log p - p H, with z = logits / temperature."""
        logits, targets, log_partition, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(log_partition)
        grad = torch.empty_like(logits)
        # The entropy's gradient takes a second buffer, so it goes through half as many rows at a time.
        num_rows = ctx.chunk_tokens if grad_entropy is None else ctx.chunk_tokens // 2
        for rows in row_chunks(len(targets), num_rows):
            probabilities = scaled_copy(logits[rows], ctx.temperature).sub_(log_partition[rows, None]).exp_()
            target_weight = grad_logprobs[rows, None]
            if grad_entropy is None:
                chunk_grad = probabilities.mul_(-target_weight)
            else:
                entropy_weight = grad_entropy[rows, None]
                chunk_grad = _mix_entropy_(probabilities, target_weight, entropy_weight, entropy[rows, None])
            chunk_grad.scatter_add_(-1, targets[rows, None], target_weight)
            grad[rows] = chunk_grad.div_(ctx.temperature)
            del probabilities, chunk_grad  # one buffer: freed before the next chunk's is made
        return grad, None, None, None, None


def _chunk_statistics(
    logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability, log-sum-exp and entropy of each row, all in the one buffer that `scaled_copy` makes."""
    buffer = scaled_copy(logits, temperature)
    largest = buffer.amax(dim=-1)
    picked = buffer.gather(-1, targets[:, None]).squeeze(-1)
    total = buffer.sub_(largest[:, None]).exp_().sum(dim=-1)
    log_total = total.log()
    entropy = None
    if with_entropy:
        probabilities = buffer.div_(total[:, None])
        entropy = torch.special.entr(probabilities, out=probabilities).sum(dim=-1)
    return picked - largest - log_total, largest + log_total, entropy


def _mix_entropy_(probabilities: Tensor, target_weight: Tensor, entropy_weight: Tensor, entropy: Tensor) -> Tensor:
    """-target_weight p + entropy_weight (-p log p - p H), written over `probabilities`."""
    surprise = torch.special.entr(probabilities)
    return probabilities.mul_(-target_weight - entropy_weight * entropy).addcmul_(surprise, entropy_weight)
