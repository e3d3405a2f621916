"""From logits to a token: the inverse of the cumulative distribution at one uniform number a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, LogitsNotFinite

_BLOCK = 128  # tokens whose probabilities are summed before any is looked at


def uniform_draws(key: DrawKey, rows: Sequence[int], length: int) -> Tensor:
    """The random numbers [len(rows), length] of some of a round's responses."""
    samples = [key.first_sample + row for row in rows]
    numbers = key.draws.uniforms(key.purpose, iteration=key.iteration, samples=samples, length=length)
    return torch.from_numpy(numbers.astype(np.float32))


def draw_tokens(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row of logits [B, V], which are overwritten, at `uniforms` [B], and its log-probability: [B] each."""
    weights = logits.float()
    weights.sub_(weights.amax(dim=-1, keepdim=True)).mul_(1 / temperature).exp_()
    chosen, total = _invert(weights, uniforms)
    return chosen, weights.gather(1, chosen[:, None]).squeeze(1).log() - total.log()


def choose_tokens(logits: Tensor, config: SamplingConfig, uniforms: Tensor) -> Tensor:
    """One token a row [B] from logits [B, V], which are overwritten: the argmax at temperature 0, else a draw.

    top-k keeps the k likeliest tokens, top-p the smallest set of likeliest ones whose probability reaches p; the
    draw is from what is kept, renormalised.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    if not config.truncated:
        return draw_tokens(logits, config.temperature, uniforms)[0]
    probs = (logits.float() / config.temperature).softmax(dim=-1)
    ranked, order = probs.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # probability of everything likelier
    cut = before >= config.top_p
    if config.top_k:
        cut[:, config.top_k :] = True
    return _invert(probs.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), 0.0), uniforms)[0]


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token [B] in which `uniforms` [B] of each row's sum fall, and the sums [B]; `weights` [B, V] are at least 0.

    Found in two steps, so that no sum runs over the whole vocabulary: first the block, then the token in it.
    """
    rows, width = weights.shape
    whole = width // _BLOCK
    blocks = weights[:, : whole * _BLOCK].reshape(rows, whole, _BLOCK).sum(dim=-1)
    reached = torch.cat([blocks, weights[:, whole * _BLOCK :].sum(dim=-1, keepdim=True)], dim=1).cumsum(dim=1)
    total = reached[:, -1:]
    if total.device.type == "cpu" and not bool(total.isfinite().all()):  # elsewhere a step would wait for the answer
        raise LogitsNotFinite("the policy's logits are not finite, so no token can be drawn; lower the learning rate")
    below = torch.nextafter(total, torch.zeros_like(total))  # so that the block is never an impossible one
    target = torch.minimum(uniforms[:, None].to(total.dtype) * total, below)
    block = torch.searchsorted(reached, target, right=True)
    target = target - reached.gather(1, (block - 1).clamp(min=0)).masked_fill_(block == 0, 0.0)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    part = weights.gather(1, tokens.clamp(max=width - 1)).masked_fill_(tokens >= width, 0.0)
    place = torch.searchsorted(part.cumsum(dim=1), target, right=True).clamp(max=_BLOCK - 1)
    possible = part.gather(1, place) > 0  # rounding may end beyond the last possible token
    place = torch.where(possible, place, part.argmax(dim=1, keepdim=True))
    drawn = tokens.gather(1, place).squeeze(1)
    return drawn.clamp(max=width - 1), total.squeeze(1)  # of what is not finite and was not looked at, a token still
