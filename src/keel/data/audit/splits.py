"""Prompts that are trained on and judged on: the same ones, and near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from keel.data.audit.gather import Gathered, Int64s, Prompts
from keel.data.audit.simhash import near_duplicates


@dataclass(frozen=True)
class Near:
    """A prompt that is trained on, a held-out one that is nearly it, and their Jaccard."""

    train: int  # index into Prompts
    held_out: int
    jaccard: float


@dataclass(frozen=True)
class Splits:
    """Training against held-out prompts, each counted once whatever its white space and case.

    `shared` and `near` [n] mark the training prompts that are held out too, or nearly; `between` counts the prompts
    that two sources share. `by_file`: whole sources are held out, else prompts by their hash. `unsure`: training
    prompts with more candidates among the held-out ones than they were held to, and no near-duplicate among those.
    """

    by_file: bool
    train: int
    held_out: int
    shared_prompts: int
    near_train: int
    near_held_out: int
    shared: NDArray[np.bool_]
    near: NDArray[np.bool_]
    examples: tuple[Near, ...]  # one for each held-out prompt with a near-duplicate
    between: Mapping[tuple[int, int], int]
    unsure: int


def splits_of(gathered: Gathered) -> Splits:
    """From all prompts of all sources."""
    prompts = gathered.prompts
    train, held_out = (_once(prompts, prompts.held_out == side) for side in (False, True))
    both = np.intersect1d(prompts.key[train], prompts.key[held_out])
    own_train = train[~np.isin(prompts.key[train], both)]
    found = near_duplicates(prompts.sketches[held_out], prompts.sketches[own_train])
    near_held_out, near_train = held_out[found.left], own_train[found.right]
    pairs = zip(near_train.tolist(), near_held_out.tolist(), found.jaccard.tolist(), strict=True)
    examples = {held: Near(one, held, share) for one, held, share in reversed([*pairs])}
    near_keys = np.unique(prompts.key[near_train])
    return Splits(
        by_file=any(source.held_out for source in gathered.sources),
        train=len(train),
        held_out=len(held_out),
        shared_prompts=len(both),
        near_train=len(near_keys),
        near_held_out=len(examples),
        shared=~prompts.held_out & np.isin(prompts.key, both),
        near=~prompts.held_out & np.isin(prompts.key, near_keys),
        examples=tuple(examples[held] for held in sorted(examples)),
        between=_between(prompts, len(gathered.sources)),
        unsure=found.unsure,
    )


def _once(prompts: Prompts, side: NDArray[np.bool_]) -> Int64s:
    """The first prompt of each key on a side."""
    rows = np.flatnonzero(side)
    return rows[np.sort(np.unique(prompts.key[rows], return_index=True)[1])]


def _between(prompts: Prompts, sources: int) -> dict[tuple[int, int], int]:
    keys = [np.unique(prompts.key[prompts.source == number]) for number in range(sources)]
    shared = {pair: len(np.intersect1d(keys[pair[0]], keys[pair[1]])) for pair in combinations(range(sources), 2)}
    return {pair: count for pair, count in shared.items() if count}
