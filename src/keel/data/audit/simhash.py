"""Near-duplicates among texts: SimHash finds candidates, the share of common word pairs (Jaccard) decides.

A text's features are the pairs of words that follow each other, its start and end included; case, white space and
punctuation do not count, and each Chinese, Japanese or Korean character is a word. All of it is numpy's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

SKETCH = 64
"""Features kept of a text, those of the smallest hashes: up to as many, Jaccard is exact, beyond it an estimate."""

THRESHOLD = 0.8
"""Jaccard from which two texts are near-duplicates: one word in nineteen changed is above it."""

_BLOCKS = 16  # of 8 bits
_FAR = 32  # bits of 128 that candidates may differ in; unrelated texts differ in 64 ± 6
_MOST_A_BUCKET = 256  # candidates looked at for one text in one table
_CHUNK = 1 << 19  # candidate pairs at once
_PAD = np.uint32(0xFFFFFFFF)
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_LETTERS = np.array([chr(byte).isalnum() if byte < 128 else True for byte in range(256)])
_IDEOGRAPHS = np.array([0xE3 <= byte <= 0xED for byte in range(256)])  # first bytes of such characters in UTF-8

UInt64s = NDArray[np.uint64]


@dataclass(frozen=True)
class Sketches:
    """n texts: SimHashes [n, _BLOCKS], features [n, SKETCH] ascending and padded, and how many there are in all [n]."""

    hashes: NDArray[np.uint8]
    features: NDArray[np.uint32]
    counts: NDArray[np.int64]

    def __getitem__(self, rows: NDArray[np.int64]) -> Sketches:
        return Sketches(self.hashes[rows], self.features[rows], self.counts[rows])

    @classmethod
    def joined(cls, parts: Sequence[Sketches]) -> Sketches:
        """All of them in order."""
        parts = [cls(np.empty((0, _BLOCKS), np.uint8), np.empty((0, SKETCH), np.uint32), np.empty(0, np.int64)), *parts]
        return cls(
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs (left, right) of near-duplicates with their Jaccard [m]: every text that has one is in a pair.

    `unsure` counts the texts of the right in none that were not held to all their candidates: there were too many.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    unsure: int = 0


def mixed(values: UInt64s) -> UInt64s:
    """Each value well mixed (SplitMix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sketches(texts: Sequence[str]) -> Sketches:
    """The sketches of texts; what has no word has no feature."""
    words, text_of_word = _words(texts)
    texts_and_features = _distinct_pairs(words, text_of_word, len(texts))
    text_of, feature = (texts_and_features >> np.uint64(32)).astype(np.int64), texts_and_features.astype(np.uint32)
    starts = np.flatnonzero(np.diff(text_of, prepend=-1))
    counts = np.bincount(text_of, minlength=len(texts))
    found = Sketches(
        np.zeros((len(texts), _BLOCKS), np.uint8),
        np.full((len(texts), SKETCH), _PAD, np.uint32),
        counts.astype(np.int64),
    )
    rank = np.arange(len(feature)) - np.repeat(starts, counts[counts > 0])
    kept = rank < SKETCH
    found.features[text_of[kept], rank[kept]] = feature[kept]
    if len(feature):
        halves = [
            mixed(feature + np.uint64(seed * _MULTIPLIER % 2**64)).view(np.uint8).reshape(-1, 8) for seed in (1, 2)
        ]
        bits = np.unpackbits(np.concatenate(halves, axis=1), axis=1)
        sums = np.add.reduceat(bits, starts, axis=0, dtype=np.uint32)
        found.hashes[counts > 0] = np.packbits(2 * sums > counts[counts > 0, None], axis=1)
    return found


def _words(texts: Sequence[str]) -> tuple[UInt64s, NDArray[np.int64]]:
    """A hash of every word of all texts in order, and the number of its text."""
    encoded = [text.casefold().encode("utf-8", "surrogatepass") + b"\n" for text in texts]
    letters = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([len(one) for one in encoded])
    inside = _LETTERS[letters]
    starts = inside & ~np.concatenate([[False], inside[:-1]]) | _IDEOGRAPHS[letters]
    first = np.flatnonzero(starts)
    stops = np.flatnonzero(starts | ~inside)
    last = stops[np.searchsorted(stops, first, "right")] if len(first) else first
    # A polynomial's value over any stretch of the letters is a difference of prefix sums, moved to the start.
    powers = np.cumprod(np.full(len(letters), _MULTIPLIER, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((letters + np.uint64(1)) * powers, dtype=np.uint64)])
    back = np.cumprod(np.full(len(letters), _INVERSE, np.uint64))
    return mixed((sums[last] - sums[first]) * back[first]), np.searchsorted(ends, first, "right")


def _distinct_pairs(words: UInt64s, text_of_word: NDArray[np.int64], num_texts: int) -> UInt64s:
    """Neighbouring words as (number of the text << 32 | hash), ascending, each once a text."""
    places = np.arange(len(words)) + text_of_word
    stream = np.zeros(len(words) + num_texts, np.uint64)  # a zero ends a text, and begins the next one
    stream[places] = words
    text_of = np.empty(len(stream), np.int64)
    text_of[places] = text_of_word
    is_word = np.zeros(len(stream), bool)
    is_word[places] = True
    text_of[~is_word] = np.arange(num_texts)
    before = np.concatenate([np.zeros(1, np.uint64), stream[:-1]])
    pairs = mixed(before * np.uint64(3) + stream) >> np.uint64(32)
    worded = np.bincount(text_of_word, minlength=num_texts)[text_of] > 0
    return np.unique((text_of.astype(np.uint64) << np.uint64(32) | np.minimum(pairs, _PAD - 1))[worded])


def jaccard(one: Sketches, other: Sketches) -> NDArray[np.float64]:
    """Common features over all features, text by text [n]; 0 where both have none.

    Of texts with more than SKETCH features it is estimated from the SKETCH smallest hashes of their union, with a
    standard error of √(J(1 − J) / SKETCH) ≤ 0.06.
    """
    merged = np.sort(np.concatenate([one.features, other.features], axis=1), axis=1)
    real = merged != _PAD
    new = real.copy()
    new[:, 1:] &= merged[:, 1:] != merged[:, :-1]
    rank = np.cumsum(new, axis=1)
    whole = np.maximum(one.counts, other.counts) <= SKETCH
    limit = np.where(whole, 2 * SKETCH, SKETCH)[:, None]
    union = (new & (rank <= limit)).sum(axis=1)
    common = (real & ~new & (rank <= limit)).sum(axis=1)
    return np.asarray(common / np.maximum(union, 1), np.float64)


def near_duplicates(left: Sketches, right: Sketches, threshold: float = THRESHOLD) -> NearDuplicates:
    """Texts of the left with a near-duplicate on the right, and the other way round.

    SimHashes of 128 bits are cut into 16 blocks, and texts that agree in any two of them are candidates: all that
    differ in 14 bits or fewer, and nearly all that differ in 20. Those that differ in at most 32, four standard
    deviations below what unrelated texts differ in, are held to their Jaccard.
    """
    seen_left, seen_right = np.zeros(len(left.hashes), bool), np.zeros(len(right.hashes), bool)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    unsure = np.zeros(len(right.hashes), bool)
    left_bits, right_bits = (side.hashes.view(np.uint64) for side in (left, right))
    for one, other in combinations(range(_BLOCKS), 2):
        keys, wanted = (
            side.hashes[:, one].astype(np.uint16) << np.uint16(8) | side.hashes[:, other] for side in (left, right)
        )
        crowded = [np.bincount(side, minlength=1 << 16) > _MOST_A_BUCKET for side in (keys, wanted)]
        unsure |= (crowded[0] & crowded[1])[wanted]
        for rows, candidates in _candidates(keys, wanted):
            near = np.bitwise_count(left_bits[rows] ^ right_bits[candidates]).sum(axis=1) <= _FAR
            near &= ~(seen_left[rows] & seen_right[candidates])
            near &= (left.counts[rows] > 0) & (right.counts[candidates] > 0)
            rows, candidates = rows[near], candidates[near]
            share = jaccard(left[rows], right[candidates])
            same = share >= threshold
            rows, candidates = rows[same], candidates[same]
            seen_left[rows] = seen_right[candidates] = True
            found.append((rows, candidates, share[same]))
    missed = int((unsure & ~seen_right).sum())
    if not found:
        return NearDuplicates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    rows, candidates, shares = (np.concatenate(part) for part in zip(*found, strict=True))
    _, first = np.unique(np.stack([rows, candidates]), axis=1, return_index=True)
    return NearDuplicates(rows[first], candidates[first], shares[first], missed)


def _candidates(
    left: NDArray[np.uint16], right: NDArray[np.uint16]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of both sides with equal keys, a chunk at a time: all of them but where a key has too many on both sides.

    There each row of either side meets the first _MOST_A_BUCKET of the other one.
    """
    yield from _first_of_bucket(left, right)
    crowd = np.flatnonzero((np.bincount(right, minlength=1 << 16) > _MOST_A_BUCKET)[right])
    for rows, candidates in _first_of_bucket(right[crowd], left):
        yield candidates, crowd[rows]


def _first_of_bucket(
    left: NDArray[np.uint16], right: NDArray[np.uint16]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each row of the left beside the first _MOST_A_BUCKET of the right with its key."""
    order = np.argsort(right, kind="stable")
    keys = right[order]
    start = np.searchsorted(keys, left, "left")
    taken = np.minimum(np.searchsorted(keys, left, "right") - start, _MOST_A_BUCKET)
    ends = np.cumsum(taken)
    first = 0
    while first < len(left):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _CHUNK, "right")))
        counts = taken[first:last]
        rows = np.repeat(np.arange(first, last), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[start[rows] + offsets]
        first = last
