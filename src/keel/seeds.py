"""Counter-based random draws: every draw is a function of what it is for, never of what was drawn before.

A draw is named by (seed, stage, purpose, iteration, sample, position), so it is the same in any batch, on any
number of processes, and in a run that was interrupted. There is no state to save besides these counters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Draws:
    """The random draws of one stage of one run. Different purposes give independent streams."""

    seed: int
    stage: str

    def generator(self, purpose: str, *, iteration: int = 0, sample: int = 0) -> np.random.Generator:
        """A fresh Philox generator at the start of the stream of (purpose, iteration, sample)."""
        return np.random.Generator(np.random.Philox(key=self._key(purpose, iteration, sample)))

    def uniforms(self, purpose: str, *, iteration: int, samples: Sequence[int], length: int) -> NDArray[np.float64]:
        """Numbers in [0, 1), float64 [len(samples), length].

        Row i depends on samples[i] alone, whatever the other rows; a longer `length` extends the shorter one.
        """
        rows = np.empty((len(samples), length), dtype=np.float64)
        for row, sample in zip(rows, samples, strict=True):
            row[:] = self.generator(purpose, iteration=iteration, sample=sample).random(length)
        return rows

    def permutation(self, purpose: str, n: int, *, iteration: int = 0) -> NDArray[np.int64]:
        """A random order of range(n), int64 [n]."""
        return self.generator(purpose, iteration=iteration).permutation(np.arange(n, dtype=np.int64))

    def torch_seed(self, purpose: str) -> int:
        """A 63-bit integer for `torch.manual_seed`, for the initial weights."""
        return self.integer(purpose)

    def integer(self, purpose: str, *, iteration: int = 0, sample: int = 0) -> int:
        """A 63-bit integer that seeds somebody else's generator, with the name of a stream."""
        return self._key(purpose, iteration, sample) >> 65

    def batch_indices(self, purpose: str, n: int, *, batch: int, start: int) -> list[int]:
        """`batch` indices into n items, from position `start` of an endless sequence of fresh permutations.

        Epoch e is `permutation(purpose, n, iteration=e)`; a batch may run from one epoch into the next. The
        position (the number of items taken so far) is all the state there is.

        Raises ValueError if there is no item, or a size or position is negative.
        """
        if n < 1 or batch < 0 or start < 0:
            raise ValueError(f"cannot take {batch} of {n} items from position {start}")
        indices: list[int] = []
        while len(indices) < batch:
            epoch, offset = divmod(start + len(indices), n)
            wanted = batch - len(indices)
            indices += self.permutation(purpose, n, iteration=epoch)[offset : offset + wanted].tolist()
        return indices

    def _key(self, purpose: str, iteration: int, sample: int) -> int:
        """128 bits; JSON keeps the parts apart, so that ("a", "bc") and ("ab", "c") differ."""
        name = json.dumps([self.seed, self.stage, purpose, iteration, sample]).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
