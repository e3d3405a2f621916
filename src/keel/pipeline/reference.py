"""The reference's log-probabilities of fixed responses: computed once, kept on disk, read again on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from keel.batching import cut_by_tokens, pad_rows
from keel.engines.base import TokenScorer
from keel.records import EncodedRow
from keel.runs import files

CACHE = "reference_logprobs.safetensors"
_NAME = "logprobs"


def response_logprobs(
    scorer: TokenScorer, rows: Sequence[EncodedRow], token_budget: int, told: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Log-probability of each whole response, float [len(rows)]; `told` hears how many rows are done."""
    result = torch.zeros(len(rows))
    done = 0
    for group in cut_by_tokens([len(row.tokens) for row in rows], token_budget):
        result[torch.tensor(group)] = scorer.logprobs(pad_rows([rows[index] for index in group])).sum(dim=1)
        done += len(group)
        told(done)
    return result


def cached_logprobs(
    path: Path, model: str, rows: Sequence[EncodedRow], compute: Callable[[Sequence[EncodedRow]], Tensor]
) -> dict[EncodedRow, float]:
    """What `compute` gives of each row, read from `path` if it was written there for the same model and rows.

    `model` names the reference by its contents, and in what precision it computes.
    """
    key = _key(model, rows)
    found = _read(path, key)
    if found is None:
        found = compute(rows)
        files.write_bytes(path, save({_NAME: found}, {"key": key}))
    return dict(zip(rows, found.tolist(), strict=True))


def _key(model: str, rows: Sequence[EncodedRow]) -> str:
    digest = hashlib.sha256(model.encode())
    for row in rows:
        digest.update(f"\n{row.prompt_length} {row.tokens}".encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Tensor | None:
    if not path.is_file():
        return None
    with safe_open(path, "pt") as content:
        if (content.metadata() or {}).get("key") != key:
            return None
        found: Tensor = content.get_tensor(_NAME)
        return found
