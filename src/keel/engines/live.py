"""The responses that are being drawn: a finished one leaves at once, and a waiting prompt takes its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keel.batching import cut_by_tokens, pad_rows
from keel.config.sampling import SamplingConfig
from keel.engines.base import Watch
from keel.engines.cache import RaggedCache, RaggedMasks
from keel.engines.drawing import choose_tokens, draw_tokens
from keel.models.critic import ValueHead
from keel.models.policy import Policy
from keel.records import EncodedRow

_PREFILL_TOKENS = 2048  # tokens of prompts in one forward
_REFILL = 8  # waiting prompts come in once an eighth of the slots is free, for a forward has its price
_ROWS, _KEYS = 8, 16  # what a step's rows and keys are rounded up to: a product of a new shape has its price
_LOOK_EVERY = {"cpu": 1}  # steps between two looks at who has ended; elsewhere a look makes the host wait

Stops = Callable[[int, Sequence[int]], bool]


@dataclass(frozen=True)
class Drawn:
    """What one round drew, on the CPU; arbitrary behind a response's end."""

    tokens: Tensor  # int64 [N, T]
    lengths: Tensor  # int64 [N], the end token included
    logprobs: Tensor | None  # float [N, T] at the temperature; None where the distribution was cut
    values: Tensor | None  # float [N, T] of the critic's head, where there is one

    @classmethod
    def joined(cls, numbers: Sequence[Sequence[int]], parts: Sequence[Drawn | None]) -> Drawn:
        """One round of its parts, each of the responses of those numbers; None of no responses."""
        some = [part for part in parts if part is not None]
        order = torch.tensor([number for part in numbers for number in part]).argsort()

        def column(name: str) -> Any:
            columns = [getattr(part, name) for part in some]
            return None if columns[0] is None else torch.cat(columns)[order]

        return cls(*(column(field.name) for field in fields(cls)))


class LiveRows:
    """One round: responses to all prompts, as many side by side as there are slots; the first `live` slots are taken.

    What the host can count (which response a slot draws, how many tokens it has) never comes from the device.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[tuple[int, ...]],
        config: SamplingConfig,
        uniforms: Tensor,
        ends: Tensor,
        *,
        watch: Watch | None = None,
        stops: Stops | None = None,
    ) -> None:
        """`uniforms` [N, max_new_tokens]; `ends` bool [V]; `stops(n, ids)`: whether response n ends with these."""
        device = policy.device
        slots, size = min(config.batch, len(prompts)), (len(prompts), config.max_new_tokens)
        self._policy, self._config, self._watch, self._stops = policy, config, watch, stops
        self._prompts = prompts
        numbers: dict[tuple[int, ...], int] = {}
        self._text = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]  # equal ones share a number
        # Like lengths meet, so that little is padding; equal ones stand together.
        self._waiting = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), self._text[n], n))
        self._start: tuple[int, Tensor] | None = None  # the last prompt that was read, and its last state [H]
        self._cache = RaggedCache(slots, max(map(len, prompts)) + config.max_new_tokens - 1)
        self._masks = RaggedMasks(policy.backbone)
        self._slots, self._live = slots, 0
        self._number, self._length, self._count = (np.zeros(slots, dtype=np.int64) for _ in range(3))
        self._last = torch.zeros(slots, dtype=torch.long, device=device)
        self._ended = torch.zeros(slots, dtype=torch.bool, device=device)
        self._look_every = 1 if watch or stops else _LOOK_EVERY.get(device.type, 8)
        self._ends, self._uniforms = ends.to(device), uniforms.to(device)
        self._tokens = torch.zeros(size, dtype=torch.long, device=device)
        whole = config.temperature > 0 and not config.truncated
        self._logprobs = torch.zeros(size, device=device) if whole else None
        self._values = torch.zeros(size, device=device) if isinstance(policy.critic, ValueHead) else None
        self._drawn = np.zeros(len(prompts), dtype=np.int64)

    @torch.no_grad()
    def run(self) -> Drawn:
        """Draw them all."""
        steps = 0
        while self._waiting or self._live:
            free, first = self._slots - self._live, self._live
            if self._waiting and (not self._live or free * _REFILL >= self._slots):
                states = self._admit(self._waiting[:free])
                del self._waiting[:free]
            else:
                first, states = 0, self._advance()
            self._draw(states, first)
            steps += 1
            if steps % self._look_every == 0 or self._count[: self._live].max() == self._config.max_new_tokens:
                self._release()
        tokens = self._tokens.cpu()
        ends = self._ends.cpu()[tokens]
        to_end = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, tokens.shape[1])
        lengths = torch.minimum(torch.from_numpy(self._drawn), to_end)
        logprobs, values = (None if one is None else one.cpu() for one in (self._logprobs, self._values))
        return Drawn(tokens, lengths, logprobs, values)

    def _admit(self, numbers: Sequence[int]) -> Tensor:
        """Prompts into the next free slots: states [len(numbers), H] from which their first tokens are drawn.

        A text is read once: equal prompts are copies, also of one that is already being answered.
        """
        slot_of = {self._text[n]: slot for slot, n in enumerate(self._number[: self._live].tolist())}
        known = self._start if self._start is not None and self._start[0] in slot_of else None
        shared = [n for n in numbers if known is not None and self._text[n] == known[0]]
        states = []
        if known is not None and shared:
            length = len(self._prompts[shared[0]])
            self._cache.copy([slot_of[known[0]]] * len(shared), range(self._live, self._live + len(shared)), length)
            self._take(shared)
            states.append(known[1].expand(len(shared), -1))
        fresh: dict[int, list[int]] = {}
        for n in numbers[len(shared) :]:
            fresh.setdefault(self._text[n], []).append(n)
        groups = list(fresh.values())
        for part in cut_by_tokens([len(self._prompts[group[0]]) for group in groups], _PREFILL_TOKENS):
            states.append(self._read([groups[index] for index in part]))
        return torch.cat(states)

    def _read(self, groups: Sequence[Sequence[int]]) -> Tensor:
        """The forward on one prompt of each group of equal ones: the last states [responses, H]."""
        prompts = [self._prompts[group[0]] for group in groups]
        batch = pad_rows([EncodedRow(prompt, len(prompt)) for prompt in prompts])
        copies = torch.tensor([row for row, group in enumerate(groups) for _ in group], device=self._last.device)
        self._cache.fill(self._live, copies)
        states = self._policy.next_states(batch.tokens.to(self._last.device), self._cache)
        last = states[torch.arange(len(groups)), batch.prompt_lengths - 1]
        self._start = (self._text[groups[-1][0]], last[-1].clone())
        self._take([n for group in groups for n in group])
        return last[copies]

    def _take(self, numbers: Sequence[int]) -> None:
        """The next free slots are those of these responses."""
        slots = slice(self._live, self._live + len(numbers))
        self._number[slots] = numbers
        self._length[slots] = [len(self._prompts[n]) for n in numbers]
        self._count[slots] = 0
        self._ended[slots] = False
        self._live = slots.stop

    def _advance(self) -> Tensor:
        """The forward on the token that each live slot drew last: states [n, H]; a few free slots behind take part."""
        rows = min(-(-self._live // _ROWS) * _ROWS, self._slots)
        length = self._length[:rows]
        length[self._live :] = 0
        lengths = torch.from_numpy(length.copy()).to(self._last.device)
        keys = min(-(-(int(length.max()) + 1) // _KEYS) * _KEYS, self._cache.length)
        self._cache.extend(lengths, keys)
        mask = self._masks(lengths, keys)
        states = self._policy.next_states(self._last[:rows, None], self._cache, mask=mask, positions=lengths[:, None])
        length[: self._live] += 1
        return states[:, 0]

    def _draw(self, states: Tensor, first: int) -> None:
        """A token for each slot from `first` on, and what is known of it; `states` may go on behind the live ones."""
        slots, count = slice(first, self._live), self._live - first
        place = (self._numbers(slots), torch.from_numpy(self._count[slots].copy()).to(states.device))
        logits = self._policy.next_logits(states)[:count]
        config, uniforms = self._config, self._uniforms[place]
        if self._logprobs is None:
            chosen = choose_tokens(logits, config, uniforms)
        else:
            chosen, self._logprobs[place] = draw_tokens(logits, config.temperature, uniforms)
        if self._values is not None:
            assert self._policy.critic is not None
            self._values[place] = self._policy.critic(states)[:count]
        self._last[slots] = chosen
        self._tokens[place] = chosen
        self._count[slots] += 1
        self._ended[slots] |= self._ends[chosen]
        if self._watch is not None:
            self._watch(self._number[slots].tolist(), chosen.tolist())
        if self._stops is not None:
            for slot in range(first, self._live):
                number = int(self._number[slot])
                if not self._ended[slot]:
                    self._ended[slot] = self._stops(number, self._tokens[number, : self._count[slot]].tolist())

    def _numbers(self, slots: slice) -> Tensor:
        return torch.from_numpy(self._number[slots].copy()).to(self._last.device)

    def _release(self) -> None:
        """Who has ended leaves, and the last live slots move into the holes."""
        live = self._live
        ended = self._ended[:live].cpu().numpy() | (self._count[:live] == self._config.max_new_tokens)
        if not ended.any():
            return
        self._drawn[self._number[:live][ended]] = self._count[:live][ended]
        stay = live - int(ended.sum())
        holes = np.flatnonzero(ended[:stay])
        movers = stay + np.flatnonzero(~ended[stay:])
        if len(holes):
            self._cache.copy(movers.tolist(), holes.tolist(), int(self._length[movers].max()))
            for column in (self._number, self._length, self._count):
                column[holes] = column[movers]
            self._last[holes] = self._last[movers]
        self._ended[:live] = False
        self._live = stay
