"""Keys and values of responses of unequal length, in buffers that are made once for a round of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from keel.models.policy import Policy

AttentionMask = Tensor | dict[str, Tensor]


class RaggedCache(Cache):
    """Row i stands at positions 0 .. its length - 1 of slot i; what lies behind is finite, and masked.

    A forward is announced: `fill` before one on whole prompts, `extend` before one of a token a row. The buffers,
    [slots, heads, length, head size] of each layer's keys and values, are made by the first forward.
    """

    def __init__(self, slots: int, length: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.length = length
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._fills: tuple[slice, Tensor] | None = None
        self._extends: tuple[Tensor, Tensor, int] | None = None

    def fill(self, first: int, copies: Tensor) -> None:
        """The next forward reads prompts padded on the right; slot `first` + i gets its row `copies[i]`."""
        self._fills = (slice(first, first + len(copies)), copies)

    def extend(self, lengths: Tensor, keys: int) -> None:
        """The next forward reads one token for each of the first slots, whose `lengths` [n] are below `keys`."""
        self._fills = None
        self._extends = (torch.arange(len(lengths), device=lengths.device), lengths, keys)

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """The first `length` positions of some slots into others."""
        for store in (part for pair in self._stores.values() for part in pair):
            store[targets, :, :length] = store[sources, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What an attention layer reads: the prompts themselves, or the first positions of the first slots."""
        new = (key_states, value_states)
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._buffer(key_states), self._buffer(value_states))
        stores = self._stores[layer_idx]
        if self._fills is not None:
            slots, copies = self._fills
            for store, part in zip(stores, new, strict=True):
                store[slots, :, : part.shape[2]] = part[copies]
            return new
        assert self._extends is not None, "a forward was not announced"
        rows, lengths, width = self._extends
        for store, part in zip(stores, new, strict=True):
            store[rows, :, lengths] = part.squeeze(2)
        keys, values = (store[: len(rows), :, :width] for store in stores)
        return keys, values

    def _buffer(self, states: Tensor) -> Tensor:
        return states.new_zeros((self.slots, states.shape[1], self.length, states.shape[3]))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Prompts begin at position 0; where a token stands is given with it."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Of prompts, which see themselves alone."""
        return query_length, 0


class RaggedMasks:
    """What each kind of attention layer of a model may see when rows of unequal length get a token."""

    def __init__(self, backbone: nn.Module) -> None:
        """Raises ValueError for a model with layers of another kind than full and sliding attention."""
        config: Any = backbone.config
        kinds, options = get_layer_types_and_kwargs(config.get_text_config())
        self._windows = {kind: one.get("sliding_window") for kind, one in zip(kinds, options, strict=True)}
        self._dtype = next(backbone.parameters()).dtype
        if not self._windows.keys() <= {"full_attention", "sliding_attention"}:
            raise ValueError(f"layers of {', '.join(sorted(self._windows))}")

    def __call__(self, lengths: Tensor, keys: int) -> AttentionMask:
        """Added to the scores, [n, 1, 1, keys]: 0 where a row may look, its new token at `lengths` [n] included."""
        position = torch.arange(keys, device=lengths.device)
        seen = position <= lengths[:, None]
        masks = {}
        for kind, window in self._windows.items():
            near = seen if window is None else seen & (position > lengths[:, None] - window)
            mask = torch.zeros(near.shape, dtype=self._dtype, device=lengths.device)
            masks[kind] = mask.masked_fill_(~near, torch.finfo(self._dtype).min)[:, None, None]
        return masks if len(masks) > 1 else masks.popitem()[1]


@torch.no_grad()
def why_not(policy: Policy) -> str | None:
    """Why a `RaggedCache` cannot drive this model; None where it can.

    Besides what the model says of itself, two rows of unequal length are extended by two tokens and held to the
    model's forward without a cache.
    """
    model: Any = policy.backbone
    if not getattr(model, "_can_compile_fullgraph", False):  # what transformers requires for its own fixed buffers
        return "it keeps a state of its own kind"
    tokens = torch.arange(12, device=policy.device).reshape(2, 6) % model.config.get_text_config().vocab_size
    starts = torch.tensor([2, 4], device=policy.device)
    rows = torch.arange(2, device=policy.device)
    try:
        masks = RaggedMasks(model)
        cache = RaggedCache(2, 6)
        cache.fill(0, rows)
        policy.next_states(tokens[:, :4], cache)
        found = []
        for lengths in (starts, starts + 1):
            cache.extend(lengths, 6)
            mask = masks(lengths, 6)
            found.append(policy.next_states(tokens[rows, lengths, None], cache, mask=mask, positions=lengths[:, None]))
        expected = policy.next_states(tokens, None)
    except Exception as error:  # a model's own code may refuse a cache in any way
        return f"its code refuses the cache ({type(error).__name__})"
    ours = torch.cat(found, dim=1).float()
    theirs = torch.stack([expected[rows, starts], expected[rows, starts + 1]], dim=1).float()
    tolerance = (1e-3 if expected.dtype == torch.float32 else 5e-2) * float(theirs.abs().max())
    return None if torch.allclose(ours, theirs, rtol=0, atol=tolerance) else "it computes otherwise with the cache"
