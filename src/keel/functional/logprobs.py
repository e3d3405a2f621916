"""Log-probabilities of given tokens, and the exact entropy, without a copy of the logits.

A language model's logits are its largest tensor. Both passes walk over them in chunks of rows that a processor's cache
holds, so beyond the logits (and, in the backward pass, their gradient) never more than `chunk_tokens` x V floats live.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = {"cpu": 1 << 20}  # numbers of a chunk: 4 MiB of float32
_CHUNK_ELSEWHERE = 1 << 26


def logprobs_and_entropy(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, in nats: two tensors [N].

    `logits` [N, V], any float type, -inf for a token that cannot be drawn; `targets` [N] int64. With
    p = softmax(logits / temperature): log p[target], and H = -sum over the vocabulary of p log p, not
    over the drawn tokens. The results are float32, or float64 for float64 logits; both are differentiable, once.
    `chunk_tokens` fits the device's cache unless given.
    ValueError for temperature <= 0, chunk_tokens < 1, or shapes that do not fit.
    """
    logprobs, entropy = _row_statistics(logits, targets, temperature, chunk_tokens, with_entropy=True)
    assert entropy is not None
    return logprobs, entropy


def token_logprobs(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_tokens: int | None = None
) -> Tensor:
    """The log-probabilities [N] of `logprobs_and_entropy` alone, without the work for the entropy."""
    logprobs, _ = _row_statistics(logits, targets, temperature, chunk_tokens, with_entropy=False)
    return logprobs


def row_chunks(num_rows: int, size: int) -> Iterator[slice]:
    """Slices that cut `num_rows` rows into chunks of at most `size`."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """`logits` divided by `temperature`, float64 if they are, else float32: themselves where that is what they are."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(dtype) if temperature == 1 else logits.to(dtype) / temperature


def _row_statistics(
    logits: Tensor, targets: Tensor, temperature: float, chunk_tokens: int | None, *, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"need logits [N, V] and targets [N], got {tuple(logits.shape)} and {tuple(targets.shape)}")
    if chunk_tokens is None:
        chunk_tokens = _CHUNK.get(logits.device.type, _CHUNK_ELSEWHERE) // max(1, logits.shape[1])
    logprobs, entropy = _RowStatistics.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        logits, targets, temperature, chunk_tokens, with_entropy
    )
    return logprobs, entropy


class _RowStatistics(torch.autograd.Function):
    """Saves the logits and each row's entropy: what the backward pass rebuilds p from, by torch's own softmax."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, chunk_tokens: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logprobs = logits.new_empty(len(targets), dtype=dtype)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        # log p, p and the logits in this precision at this temperature: as many buffers of so many rows
        for rows in row_chunks(len(targets), max(1, chunk_tokens // (3 if with_entropy else 2))):
            chunk = scaled(logits[rows], temperature)
            log_p = chunk.log_softmax(dim=-1)
            logprobs[rows] = log_p.gather(-1, targets[rows, None]).squeeze(-1)
            if entropy is not None:
                entropy[rows] = torch.linalg.vecdot(chunk.softmax(dim=-1), _finite_(log_p)).neg_()
            del chunk, log_p  # freed before the next chunk's are made
        ctx.save_for_backward(logits, targets, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, None, None, None, None]:
        """d log p[y] / dz = onehot(y) - p and dH / dz = -p (log p + H), with z = logits / temperature."""
        logits, targets, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = logits.new_zeros(len(targets), dtype=torch.promote_types(logits.dtype, torch.float32))
        grad = torch.empty_like(logits)
        for rows in row_chunks(len(targets), max(1, ctx.chunk_tokens // (2 if grad_entropy is None else 3))):
            chunk = scaled(logits[rows], ctx.temperature)
            target_weight = grad_logprobs[rows, None]
            chunk_grad = chunk.softmax(dim=-1)
            if grad_entropy is None:
                chunk_grad.mul_(-target_weight)
            else:
                surprise = _finite_(chunk.log_softmax(dim=-1)).add_(entropy[rows, None])
                chunk_grad.mul_(surprise.mul_(-grad_entropy[rows, None]).sub_(target_weight))
                del surprise
            chunk_grad.scatter_add_(-1, targets[rows, None], target_weight)
            grad[rows] = chunk_grad if ctx.temperature == 1 else chunk_grad.div_(ctx.temperature)
            del chunk, chunk_grad
        return grad, None, None, None, None


def _finite_(log_p: Tensor) -> Tensor:
    """The same with a number in place of -inf, in place: times its p, which is 0, it is 0."""
    return log_p.clamp_(min=-1e30)
