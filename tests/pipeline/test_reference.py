from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from keel.engines.scorers import PolicyScorer
from keel.pipeline.reference import CACHE, cached_logprobs, response_logprobs
from keel.records import EncodedRow
from tests.engines.helpers import exact_logprobs, tiny_policy
from tests.worlds import random_rows

ROWS = random_rows([(3, 5), (1, 2), (6, 4), (2, 1), (9, 7)])


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_each_response_is_summed_in_any_cut_and_in_its_place(budget: int) -> None:
    policy = tiny_policy()
    told: list[int] = []
    scorer = PolicyScorer(policy, temperature=1.0, token_budget=budget)
    found = response_logprobs(scorer, ROWS, budget, told.append)
    expected = [float(exact_logprobs(policy.backbone, row, 1.0).sum()) for row in ROWS]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert told[-1] == len(ROWS)
    assert told == sorted(told)


class Reference:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, rows: Sequence[EncodedRow]) -> Tensor:
        self.asked += 1
        return torch.tensor([-0.1 * len(row.tokens) - row.prompt_length / 3 for row in rows])


def test_what_was_computed_is_read_again_bit_by_bit(tmp_path: Path) -> None:
    reference = Reference()
    first = cached_logprobs(tmp_path / CACHE, "a model", ROWS, reference)
    assert first == {row: pytest.approx(-0.1 * len(row.tokens) - row.prompt_length / 3) for row in ROWS}
    assert [path.name for path in tmp_path.iterdir()] == [CACHE]
    assert load_file(tmp_path / CACHE)["logprobs"].shape == (len(ROWS),)
    assert cached_logprobs(tmp_path / CACHE, "a model", ROWS, reference) == first
    assert reference.asked == 1


def test_another_model_or_another_row_is_computed_anew(tmp_path: Path) -> None:
    reference = Reference()
    cached_logprobs(tmp_path / CACHE, "a model", ROWS, reference)
    longer_prompt = replace(ROWS[0], prompt_length=4)  # the same ids, another border
    for number, (model, rows) in enumerate(
        [("b model", ROWS), ("b model", ROWS[:3]), ("b model", [longer_prompt, *ROWS[1:3]])], start=2
    ):
        found = cached_logprobs(tmp_path / CACHE, model, rows, reference)
        assert reference.asked == number
        assert list(found) == list(rows)
