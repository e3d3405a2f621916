"""Reductions over the counted entries of a tensor.

A mask is a bool tensor of the values' shape, True = counted. What lies outside the mask (padding, NaN, inf) reaches
neither a result nor a gradient: entries are selected, never multiplied by zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, 0 elsewhere. ValueError unless `mask` is bool and of the same shape."""
    _require_fit(mask, values)
    return torch.where(mask, values, 0)


def _require_fit(mask: Tensor, values: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(f"need a bool mask of shape {tuple(values.shape)}, got {mask.dtype} of {tuple(mask.shape)}")


def require_prefix(mask: Tensor) -> None:
    """ValueError unless the counted entries of each row of `mask` [B, T] come first, without a hole."""
    holes = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)
    if holes.any():
        raise ValueError(f"row {int(holes.nonzero()[0])} of the mask counts a token after one that it leaves out")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the counted entries, a scalar (0 when there are none)."""
    return keep(values, mask).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the counted entries, a scalar. ValueError when there are none."""
    count = int(mask.sum())
    if count == 0:
        raise ValueError("the mask counts no entry, so there is no mean")
    return masked_sum(values, mask) / count


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n) of the counted entries, a scalar. ValueError when there are none."""
    deviations = keep(values - masked_mean(values, mask), mask)
    return masked_mean(deviations.square(), mask)


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of a set of numbers; sets merge exactly (Chan et al., 1979)."""

    count: float
    mean: float
    m2: float

    @classmethod
    def empty(cls) -> Moments:
        return cls(count=0.0, mean=0.0, m2=0.0)

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Moments:
        """Moments of all entries, or of the counted ones, taken in float64 and cut off from the graph."""
        counted = values.detach()
        if mask is not None:
            _require_fit(mask, values)
            counted = counted[mask]
        if counted.numel() == 0:
            return cls.empty()
        counted = counted.cpu().double()
        mean = counted.mean()
        return cls(count=float(counted.numel()), mean=float(mean), m2=float((counted - mean).square().sum()))

    def merge(self, other: Moments) -> Moments:
        """Moments of the two sets together."""
        count = self.count + other.count
        if count == 0:
            return Moments.empty()
        gap = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + gap * other.count / count,
            m2=self.m2 + other.m2 + gap * gap * self.count * other.count / count,
        )

    @property
    def var(self) -> float:
        """Population variance. ValueError for the empty set."""
        if self.count == 0:
            raise ValueError("an empty set of numbers has no variance")
        return self.m2 / self.count

    @property
    def standard_error(self) -> float:
        """Of the mean, with the population standard deviation. ValueError for the empty set."""
        return self.std / math.sqrt(self.count)

    @property
    def std(self) -> float:
        """Population standard deviation. ValueError for the empty set."""
        return math.sqrt(self.var)


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    center: bool = True,
    scale: bool = True,
    moments: Moments | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the counted entries, 0 elsewhere; same shape as `values`.

    `center=False` puts the mean back, `scale=False` leaves the spread alone. `moments` are those of the whole batch
    when `values` is a part of it; by default those of `values` under `mask`. They count as constants for gradients.
    ValueError when no entry is counted.
    """
    if moments is None:
        moments = Moments.of(values, mask)
    whitened = values - moments.mean
    if scale:
        whitened = whitened / math.sqrt(moments.var + eps)
    if not center:
        whitened = whitened + moments.mean
    return keep(whitened, mask)
