"""What a micro-batch is made of: the rows that stay together, a part of it, one row's tokens and numbers, its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from keel.batching import cut_by_tokens, take, take_tokens
from keel.records import Choices, Labels, Leash, Pairs, PolicyBatch, Rankings, Ratings, Sequences, Texts

B = TypeVar("B")
_KINDS: Mapping[str, Any] = {
    kind.__name__: kind for kind in (Choices, Labels, Leash, Pairs, PolicyBatch, Rankings, Ratings, Sequences, Texts)
}
_STRUCTURE = "structure"  # what of a file is no tensor, as JSON in its header


def units_of(batch: Any) -> list[list[int]]:
    """The rows of a micro-batch in groups that no cut may part: a pair, or all that one judgement or another links.

    A batch of a kind that is not known here is one unit.
    """
    match batch:
        case Texts() | Sequences() | Labels():
            return [[row] for row in range(len(_padded(batch).tokens))]
        case PolicyBatch():
            together = 2 if batch.paired else 1
            return [list(range(row, row + together)) for row in range(0, len(batch.sequences), together)]
        case Pairs() | Choices():
            return _linked(len(batch.rows), torch.stack([batch.chosen, batch.rejected], dim=1).tolist())
        case Rankings():
            return _linked(
                len(batch.rows), [items[mask].tolist() for items, mask in zip(batch.items, batch.mask, strict=True)]
            )
        case Ratings():
            return _linked(len(batch.rows), batch.pairs.tolist())
    return [[0]]


def part_of(batch: B, rows: Sequence[int]) -> B:
    """The micro-batch of the given rows, whole units, padded no further than they need."""
    part: Any = batch
    match batch:
        case Sequences():
            part = take(batch, rows)
        case Texts():
            lengths = batch.lengths[list(rows)]
            width = int(lengths.max())
            part = Texts(batch.tokens[list(rows), :width], batch.trained[list(rows), :width], lengths)
        case PolicyBatch():
            part = _policy_part(batch, rows)
        case Pairs() | Choices() | Labels() | Rankings() | Ratings():
            part = _judged_part(batch, rows)
    result: B = part
    return result


def cut(batch: B, token_budget: int) -> list[B]:
    """The micro-batch in parts of at most so many padded tokens each, or of one unit."""
    if padded_tokens(batch) <= token_budget:
        return [batch]
    units = units_of(batch)
    lengths = _padded(batch).lengths.tolist()
    longest = [max(lengths[row] for row in unit) for unit in units]
    groups = cut_by_tokens(longest, token_budget, [len(unit) for unit in units])
    return [part_of(batch, [row for index in group for row in units[index]]) for group in groups]


def padded_tokens(batch: Any) -> int:
    """Rows x longest row; 0 for a batch of a kind that is not known here."""
    return _padded(batch).tokens.numel() if _is_known(batch) else 0


def tokens_of(batch: Any, row: int) -> tuple[int, ...]:
    """The real token ids of a row; none for a batch of a kind that is not known here."""
    if not _is_known(batch):
        return ()
    padded = _padded(batch)
    return tuple(padded.tokens[row, : int(padded.lengths[row])].tolist())


def extremes_of(batch: Any) -> dict[str, float]:
    """By field the number that is furthest from 0, or one that is not finite; what padding holds plays no part."""
    found: dict[str, float] = {}
    for name, value in _flat(batch)[0].items():
        if value.is_floating_point() and value.numel():
            by_token = isinstance(batch, PolicyBatch) and value.ndim == 2
            numbers = value[batch.sequences.response_mask] if by_token else value.flatten()
            if len(numbers):
                found[name.rpartition(".")[2]] = _furthest(numbers)
    return found


def write_batch(path: Path, batch: Any) -> None:
    """A micro-batch as a safetensors file, whose header says of which records it is made."""
    tensors, structure = _flat(batch)
    whole = {name: one.clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
    save_file(whole, path, {_STRUCTURE: json.dumps(structure)})


def read_batch(path: Path) -> Any:
    """What `write_batch` wrote. Raises ValueError for records that are no part of a micro-batch."""
    with safe_open(path, "pt") as content:
        structure = json.loads((content.metadata() or {})[_STRUCTURE])
        return _built(structure, {name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118


def _is_known(batch: Any) -> bool:
    return type(batch) in _KINDS.values()


def _padded(batch: Any) -> Sequences | Texts:
    """The rows of a micro-batch."""
    if isinstance(batch, Sequences | Texts):
        return batch
    padded: Sequences = batch.sequences if isinstance(batch, PolicyBatch) else batch.rows
    return padded


def _linked(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Rows 0 to count - 1 in groups: those of one link are together, and so are links that share a row."""
    first = list(range(count))  # the lowest row that each is known to be with
    for link in links:
        joined = {first[row] for row in link}
        first = [min(joined) if group in joined else group for group in first]
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(first):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def _policy_part(batch: PolicyBatch, rows: Sequence[int]) -> PolicyBatch:
    def taken(values: Tensor) -> Tensor:
        return take_tokens(values, batch.sequences, rows)

    leash = batch.leash
    if leash is not None:
        leash = replace(leash, ref_logprobs=taken(leash.ref_logprobs), baseline=leash.baseline[list(rows)])
    return replace(
        batch,
        sequences=take(batch.sequences, rows),
        old_logprobs=taken(batch.old_logprobs),
        old_values=taken(batch.old_values),
        advantages=taken(batch.advantages),
        returns=taken(batch.returns),
        importance=None if batch.importance is None else taken(batch.importance),
        leash=leash,
    )


def _judged_part(batch: Any, rows: Sequence[int]) -> Any:
    """The rows, and what is judged of them, under their new numbers."""
    place = torch.full((len(batch.rows),), -1)
    place[list(rows)] = torch.arange(len(rows))
    by_row = {"ref_logprobs"}
    numbers = {"chosen", "rejected", "judged", "items"}
    of_judgements = next(getattr(batch, name) for name in ("chosen", "judged", "items") if hasattr(batch, name))
    kept = place[of_judgements.reshape(len(of_judgements), -1)[:, 0]] >= 0
    changed: dict[str, Any] = {"rows": take(batch.rows, rows)}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name in by_row:
            changed[field.name] = value[list(rows)]
        elif field.name in numbers:
            changed[field.name] = place[value[kept]].clamp(min=0)  # in a ranking's padding any row may stand
        elif field.name == "pairs":
            changed[field.name] = place[value[place[value[:, 0]] >= 0]]
        elif isinstance(value, Tensor) and value.ndim:
            changed[field.name] = value[kept]
    return replace(batch, **changed)


def _furthest(numbers: Tensor) -> float:
    bad = numbers[~numbers.isfinite()]
    return float(bad[0] if len(bad) else numbers[numbers.abs().argmax()])


def _flat(batch: Any, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by dotted name, and the record that they make: tensors and records within it by name alone."""
    tensors: dict[str, Tensor] = {}
    structure: dict[str, Any] = {"record": type(batch).__name__, "values": {}, "parts": {}}
    for field in fields(batch) if is_dataclass(batch) else ():
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value
        elif is_dataclass(value):
            inside, structure["parts"][field.name] = _flat(value, f"{prefix}{field.name}.")
            tensors |= inside
        else:
            structure["values"][field.name] = value
    return tensors, structure


def _built(structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    kind = _KINDS.get(structure["record"])
    if kind is None:
        raise ValueError(f"{structure['record']!r} is no record of a micro-batch")
    parts: dict[str, Any] = {
        name: _built(
            one, {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        )
        for name, one in structure["parts"].items()
    }
    own = {key: value for key, value in tensors.items() if "." not in key}
    return kind(**own, **parts, **structure["values"])
