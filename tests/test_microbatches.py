"""Parts of micro-batches: no unit is parted, everything is in one part, and files give back what they got."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from keel.batching import pad_rows, text_batches
from keel.microbatches import cut, extremes_of, padded_tokens, part_of, read_batch, tokens_of, units_of, write_batch
from keel.records import (
    Choices,
    EncodedText,
    Labels,
    Leash,
    Pairs,
    PolicyBatch,
    Rankings,
    Ratings,
    Sequences,
    Texts,
)
from tests.worlds import random_rows

LENGTHS = [(3, 5), (1, 2), (6, 4), (2, 2), (4, 3), (2, 6)]  # prompt and response of rows 0 to 5


def rows() -> Sequences:
    return pad_rows(random_rows(LENGTHS))


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def texts() -> Texts:
    (batch,) = text_batches([EncodedText((1, 2, 3), (False, True, True)), EncodedText((4, 5), (False, True))], 99)
    return batch


def policy_batch(*, paired: bool = False) -> PolicyBatch:
    mask = rows().response_mask
    numbered = torch.where(mask, torch.arange(6.0)[:, None] + 1, torch.nan)  # padding holds what nothing may reach
    leash = Leash(0.25, numbered * 10, torch.arange(6.0))
    return PolicyBatch(rows(), numbered, numbered, numbered * 2, numbered * 3, None, leash, paired)


def pairs() -> Pairs:
    """Rows 0, 1 and 2 are compared with each other, 4 and 3, and so is 5 with itself."""
    return Pairs(rows(), ints(0, 4, 1, 5), ints(1, 3, 2, 5), torch.arange(4.0), torch.arange(4.0) + 1)


def choices() -> Choices:
    return Choices(rows(), -torch.arange(6.0), ints(0, 4, 1, 5), ints(1, 3, 2, 5), torch.arange(4.0))


def labels() -> Labels:
    desirable = torch.tensor([True, False, True, False, True, True, False])
    judged = ints(0, 1, 2, 3, 4, 5, 0)
    return Labels(rows(), -torch.arange(6.0), judged, desirable, torch.arange(7.0), torch.tensor(0.5))


def rankings() -> Rankings:
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    items = torch.tensor([[2, 0, 1], [4, 3, 0], [5, 0, 0]])
    ranks = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 0, 0]])
    return Rankings(rows(), items, ranks, mask, torch.tensor([[2, 0], [2, 1], [0, 1], [4, 3]]))


def ratings() -> Ratings:
    told_apart = torch.tensor([[0, 1], [2, 1], [4, 3]])
    return Ratings(rows(), ints(0, 1, 2, 3, 4, 5), ints(0, 1, 0, 2, 1, 1), ints(-1, 0, 0, 1, 1, 0), told_apart)


ALONE = [[0], [1], [2], [3], [4], [5]]
LINKED = [[0, 1, 2], [3, 4], [5]]
UNITS: dict[str, tuple[Callable[[], Any], list[list[int]]]] = {
    "texts": (texts, [[0], [1]]),
    "sequences": (rows, ALONE),
    "policy": (policy_batch, ALONE),
    "paired": (lambda: policy_batch(paired=True), [[0, 1], [2, 3], [4, 5]]),
    "pairs": (pairs, LINKED),
    "choices": (choices, LINKED),
    "labels": (labels, ALONE),
    "rankings": (rankings, LINKED),
    "ratings": (ratings, LINKED),
}


@pytest.mark.parametrize("kind", UNITS)
def test_what_is_judged_together_stays_together(kind: str) -> None:
    make, units = UNITS[kind]
    assert units_of(make()) == units


def judgements(batch: Any) -> list[tuple[Any, ...]]:
    """What is judged, with the token ids of the rows in the place of their numbers."""

    def ids(row: int) -> tuple[int, ...]:
        return tokens_of(batch, row)

    match batch:
        case Pairs():
            return [
                (ids(a), ids(b), float(margin), float(weight))
                for a, b, margin, weight in zip(batch.chosen, batch.rejected, batch.margins, batch.weights, strict=True)
            ]
        case Choices():
            return [
                (ids(a), ids(b), float(batch.ref_logprobs[a]), float(batch.ref_logprobs[b]), float(weight))
                for a, b, weight in zip(batch.chosen, batch.rejected, batch.weights, strict=True)
            ]
        case Labels():
            return [
                (ids(a), float(batch.ref_logprobs[a]), bool(said), float(weight), float(batch.reference_point))
                for a, said, weight in zip(batch.judged, batch.desirable, batch.weights, strict=True)
            ]
        case Rankings():
            found: list[tuple[Any, ...]] = [
                tuple((ids(a), int(rank)) for a, rank in zip(items[mask], ranks[mask], strict=True))
                for items, ranks, mask in zip(batch.items, batch.ranks, batch.mask, strict=True)
            ]
            return found + [(ids(a), ids(b)) for a, b in batch.pairs.tolist()]
        case Ratings():
            found = [
                (ids(a), int(level), int(who))
                for a, level, who in zip(batch.items, batch.levels, batch.annotators, strict=True)
            ]
            return found + [(ids(a), ids(b)) for a, b in batch.pairs.tolist()]
        case PolicyBatch():
            assert batch.leash is not None
            of_rows = zip(batch.old_logprobs, batch.advantages, batch.returns, batch.leash.ref_logprobs, strict=True)
            return [
                (ids(row), *(float(one[0]) for one in values), float(batch.leash.baseline[row]), batch.leash.coef)
                for row, values in enumerate(of_rows)
            ]
        case Texts():
            return [(ids(row), *batch.trained[row, : batch.lengths[row]].tolist()) for row in range(len(batch.lengths))]
    return [(ids(row), int(batch.prompt_lengths[row])) for row in range(len(batch))]


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("budget", [1, 12, 20, 10_000])
def test_parts_hold_everything_once_within_the_budget(kind: str, budget: int) -> None:
    batch = UNITS[kind][0]()
    parts = cut(batch, budget)
    found = [one for part in parts for one in judgements(part)]
    assert sorted(found, key=str) == sorted(judgements(batch), key=str)
    assert all(padded_tokens(part) <= budget or len(units_of(part)) == 1 for part in parts)
    assert sum(part.weight for part in parts) == pytest.approx(batch.weight)
    if budget == 1:
        assert len(parts) == len(units_of(batch))
    if budget == 10_000:
        assert parts == [batch]


def test_a_part_is_no_wider_than_it_need_be() -> None:
    part = part_of(policy_batch(), [1, 3])
    assert part.sequences.tokens.shape == (2, 4)  # 1 + 2 and 2 + 2 tokens
    assert part.advantages.tolist() == [[4.0, 4.0], [8.0, 8.0]]


def test_what_is_furthest_from_0_and_what_is_not_finite() -> None:
    batch = policy_batch()
    assert extremes_of(batch) == {
        "old_logprobs": 6.0,
        "old_values": 6.0,
        "advantages": 12.0,
        "returns": 18.0,
        "ref_logprobs": 60.0,
        "baseline": 5.0,
    }
    batch.advantages[2, 1] = -torch.inf
    assert extremes_of(batch)["advantages"] == -math.inf
    assert extremes_of(replace(pairs(), margins=torch.tensor([0.0, -7.0, 2.0, 3.0])))["margins"] == -7.0


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(1e9), other.nan_to_num(1e9)) and one.dtype == other.dtype
    if is_dataclass(one):
        pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
        return type(one) is type(other) and all(same(*pair) for pair in pairs)
    return bool(one == other)


@pytest.mark.parametrize("kind", UNITS)
def test_a_file_gives_back_what_it_got(kind: str, tmp_path: Path) -> None:
    batch = UNITS[kind][0]()
    write_batch(tmp_path / "batch.safetensors", batch)
    assert same(read_batch(tmp_path / "batch.safetensors"), batch)


def test_a_coefficient_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    batch = policy_batch()
    assert batch.leash is not None
    write_batch(tmp_path / "batch.safetensors", replace(batch, leash=replace(batch.leash, coef=math.inf)))
    assert read_batch(tmp_path / "batch.safetensors").leash.coef == math.inf


@pytest.mark.parametrize("record", ["Rollout", "Path", "os.system"])
def test_a_file_makes_nothing_but_micro_batches(record: str, tmp_path: Path) -> None:
    write_batch(tmp_path / "good", rows())
    with safe_open(tmp_path / "good", "pt") as content:
        structure = json.loads((content.metadata() or {})["structure"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "bad", {"structure": json.dumps({**structure, "record": record})})
    with pytest.raises(ValueError, match="is no record of a micro-batch"):
        read_batch(tmp_path / "bad")
