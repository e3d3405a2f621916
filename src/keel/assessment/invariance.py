"""Does a score depend on anything but the text? On its batch, its padding, or the order of the batch it must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keel.assessment.statistics import Floats

Score = Callable[[Sequence[int]], Floats]
"""The scores of the texts with these numbers, asked for in one call and in that order."""


def invariance(score: Score, lengths: Sequence[int], tolerance: float) -> dict[str, Any]:
    """The largest difference that company makes to a score, and whether each is within `tolerance`, in its units.

    `batch`: a text among all, against alone. `padding`: beside the longest text, against alone. `order`: all in
    reverse, against all.
    """
    every = list(range(len(lengths)))
    longest = max(every, key=lambda text: lengths[text])
    alone = np.array([score([text])[0] for text in every])
    together = score(every)
    padded = np.array([score([text, longest])[0] for text in every])
    backwards = score(every[::-1])[::-1]
    changes = {
        "batch": float(np.abs(together - alone).max()),
        "padding": float(np.abs(padded - alone).max()),
        "order": float(np.abs(backwards - together).max()),
    }
    return {"texts": len(every), **changes, "tolerance": tolerance, "holds": max(changes.values()) <= tolerance}
