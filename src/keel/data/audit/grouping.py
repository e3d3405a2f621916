"""Rows that are the same in some columns, without a Python object a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keel.data.audit.simhash import UInt64s, mixed


def combined(*columns: NDArray[Any]) -> UInt64s:
    """One key of several integer columns [n]: equal where all are equal, unequal but for a chance of 2^-64 a pair."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        key = mixed(key * np.uint64(3) + column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return key


def repeats(key: UInt64s) -> NDArray[np.bool_]:
    """Whether an equal key stands earlier [n]."""
    _, first = np.unique(key, return_index=True)
    found = np.ones(len(key), bool)
    found[first] = False
    return found


def groups(key: UInt64s) -> NDArray[np.int64]:
    """The number of each row's group [n], from 0."""
    return np.unique(key, return_inverse=True)[1].astype(np.int64)
