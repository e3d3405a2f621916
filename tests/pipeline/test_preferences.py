from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keel.errors import UserError
from keel.pipeline.preferences import EncodedChoice, EncodedLabel, mismatched, reference_point
from keel.records import EncodedRow
from keel.seeds import Draws

DRAWS = Draws(0, "direct")


def row(prompt: tuple[int, ...], *response: int) -> EncodedRow:
    return EncodedRow((*prompt, *response), len(prompt))


def keep_end(ids: object, room: int) -> tuple[int, ...]:
    assert isinstance(ids, tuple)
    return tuple(ids[-room:])


LABELS = [EncodedLabel(row((word, 50), word + 1, 0), bool(word % 2)) for word in range(10, 20)]


def test_each_prompt_gets_a_response_to_another_one() -> None:
    found = mismatched([*LABELS, *LABELS], DRAWS, 10, keep_end)
    assert set(found) == {(word, 50) for word in range(10, 20)}
    for prompt, pairing in found.items():
        assert pairing.tokens[:2] == prompt
        assert pairing.prompt_length == 2
        assert pairing.tokens[2] != prompt[0] + 1  # its own response would be
    assert sorted(one.tokens[2] for one in found.values()) == list(range(11, 21))  # each response once
    assert mismatched(LABELS, DRAWS, 10, keep_end) == found  # however often a prompt is judged
    assert mismatched(LABELS, Draws(1, "direct"), 10, keep_end) != found


def test_a_prompt_is_cut_where_the_other_response_is_too_long() -> None:
    long, short = (1, 2, 3, 4, 5), (8,)
    pairs = [EncodedChoice(row(long, 6, 0), row(long, 7, 0)), EncodedChoice(row(short, 9, 9, 9, 9), row(short, 6))]
    found = mismatched(pairs, DRAWS, 7, keep_end)
    assert found[long] == row((3, 4, 5), 9, 9, 9, 9)
    assert found[short] == row(short, 6, 0)


def test_one_prompt_has_no_other() -> None:
    with pytest.raises(UserError, match=r"^direct: kto needs at least two prompts"):
        mismatched(LABELS[:1] * 3, DRAWS, 10, keep_end)


def test_the_reference_point_is_the_mean_over_a_minibatchs_prompts() -> None:
    mismatches = mismatched(LABELS, DRAWS, 10, keep_end)
    reference = {pairing: -float(prompt[0]) for prompt, pairing in mismatches.items()}

    def logprobs(rows: object) -> Tensor:
        return torch.full((len(list(rows)),), -12.0)  # type: ignore[call-overload]  # a sequence of rows

    # log-ratios of the prompts 10 … 13: -12 + 10, -12 + 11, 0, 1
    groups = [[label, label] for label in LABELS[:4]]
    assert reference_point(groups, mismatches, reference, logprobs) == 0.0  # the mean is -0.5
    assert reference_point(groups[2:], mismatches, reference, logprobs) == pytest.approx(0.5)
