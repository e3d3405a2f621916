"""Feedback: who is shown first is drawn, labels are as noisy as stated, and the file is an ordinary one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keel.annotate.base import Judgement, Pair
from keel.annotate.scripted import ScriptedAnnotator
from keel.config.collect import AnnotatorConfig, CollectConfig
from keel.config.data import DataConfig
from keel.config.sampling import SamplingConfig
from keel.data.load import load_comparisons
from keel.engines.base import DrawKey
from keel.errors import UserError
from keel.pipeline import collect
from keel.pipeline.collect import collect_comparisons
from keel.records import PromptItem, Samples
from keel.runs.metrics import read_lines
from keel.schema import Comparison
from keel.seeds import Draws
from tests.pipeline.support import EOS, PROMPT, Heard, Response, begin_stage, samples_of

A, B, C = (2, EOS), (3, EOS), (4, 4, 4)  # "a", "b", and "c c c", which was cut off
Answer = Callable[[int, int], Response]  # (prompt, which of its responses)


class AnsweringSampler:
    """Answers by the responses' global numbers; dies when it is asked for the `dies_at`-th time."""

    def __init__(self, answer: Answer, per_prompt: int, dies_at: int = 0) -> None:
        self.answer = answer
        self.per_prompt = per_prompt
        self.dies_at = dies_at
        self.asked = 0

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        self.asked += 1
        if self.asked == self.dies_at:
            raise KeyboardInterrupt
        numbers = range(key.first_sample, key.first_sample + len(prompts))
        return samples_of([self.answer(*divmod(number, self.per_prompt)) for number in numbers], prompts)


def longer_is_better(prompts: Sequence[str], responses: Sequence[str], rows: Any) -> list[float]:
    """a: 0, b: 1, c c c: 2."""
    return [float("abc".index(response[0])) for response in responses]


def prompts_of(count: int) -> list[PromptItem]:
    return [replace(PROMPT, text=f"question {n}", source=f"question {n}", row={"topic": n % 3}) for n in range(count)]


def collected(
    folder: Path,
    answer: Answer,
    *,
    count: int = 6,
    per_prompt: int = 2,
    temperature: float = 0.0,
    dies_at: int = 0,
    prompts: list[PromptItem] | None = None,
) -> tuple[dict[str, Any], list[Comparison]]:
    config = CollectConfig(
        prompts=DataConfig(path="prompts.jsonl"),
        annotator=AnnotatorConfig(script="tests:longer", temperature=temperature, name="longer"),
        per_prompt=per_prompt,
    )
    summary = collect_comparisons(
        config,
        AnsweringSampler(answer, per_prompt, dies_at),
        ScriptedAnnotator(longer_is_better, temperature=temperature, name="tests:longer"),
        prompts or prompts_of(count),
        stage=begin_stage(folder, "collect"),
        draws=Draws(0, "collect"),
        console=Heard(),
    )
    data = DataConfig(path=str(folder / "collect" / "comparisons" / "comparisons.jsonl"), validation=0.0)
    return summary, list(load_comparisons(data).train)


def test_the_file_reads_back_as_comparisons(tmp_path: Path) -> None:
    summary, rows = collected(tmp_path, lambda prompt, which: C if which else A)
    assert rows[4] == Comparison(
        prompt="question 4",
        chosen="c c c",
        rejected="a",
        annotator="longer",
        extra={
            "topic": 1,
            "chosen_ended": False,
            "rejected_ended": True,
            "chosen_first": rows[4].extra["first_probability"] == 1.0,
            "utility_gap": 2.0,
            "first_probability": rows[4].extra["first_probability"],
        },
    )
    assert [row.prompt for row in rows] == [f"question {n}" for n in range(6)]
    assert summary == {
        "comparisons": 6,
        "identical_pairs": 0,
        "prompts": 6,
        "annotator": "longer",
        "noise_ceiling": 1.0,
    }


def test_both_orders_are_shown_and_the_label_follows_the_response(tmp_path: Path) -> None:
    _, rows = collected(tmp_path, lambda prompt, which: B if which else A, count=200)
    assert all((row.chosen, row.extra["utility_gap"]) == ("b", 1.0) for row in rows)
    first = Counter(row.extra["first_probability"] for row in rows)  # 1 where b was shown first
    assert set(first) == {0.0, 1.0}
    assert all(row.extra["chosen_first"] == (row.extra["first_probability"] == 1.0) for row in rows)
    assert abs(first[1.0] - 100) < 3 * math.sqrt(50)


def test_labels_are_as_noisy_as_stated(tmp_path: Path) -> None:
    summary, rows = collected(tmp_path, lambda prompt, which: B if which else A, count=1000, temperature=0.5)
    probability = 1 / (1 + math.exp(-2.0))  # gap 1 at temperature 0.5
    right = [row.chosen == "b" for row in rows]
    assert abs(sum(right) / 1000 - probability) < 3 * math.sqrt(probability * (1 - probability) / 1000)
    assert summary["noise_ceiling"] == pytest.approx(probability)
    for row, correct in zip(rows, right, strict=True):
        assert row.extra["utility_gap"] == (1.0 if correct else -1.0)
        assert min(abs(row.extra["first_probability"] - p) for p in (probability, 1 - probability)) < 1e-12
    shown_first = [row.extra["first_probability"] > 0.5 for row in rows]
    errors = [not correct for correct in right]
    assert 0 < sum(a and b for a, b in zip(errors, shown_first, strict=True)) < sum(errors)  # in either order


def test_every_pair_of_three_is_compared(tmp_path: Path) -> None:
    summary, rows = collected(tmp_path, lambda prompt, which: (A, B, C)[which], count=2, per_prompt=3)
    pairs = [(row.prompt, frozenset((row.chosen, row.rejected))) for row in rows]
    sides = [frozenset(pair) for pair in (("a", "b"), ("a", "c c c"), ("b", "c c c"))]
    assert pairs == [(f"question {n}", side) for n in range(2) for side in sides]
    assert summary["comparisons"] == 6


def test_identical_responses_are_counted_and_left_out(tmp_path: Path) -> None:
    answers = {0: (A, A, A), 1: (A, A, B), 2: (A, B, C)}  # 0, 2 and 3 pairs
    summary, rows = collected(tmp_path, lambda prompt, which: answers[prompt][which], count=3, per_prompt=3)
    assert (summary["comparisons"], summary["identical_pairs"]) == (5, 4)
    assert Counter(row.prompt for row in rows) == {"question 1": 2, "question 2": 3}


def test_nothing_but_identical_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        collected(tmp_path, lambda prompt, which: A)
    assert str(raised.value) == (
        "collect: the 2 responses to each prompt are identical, so there is nothing to compare; "
        "raise collect.sampling.temperature"
    )


def mixed(prompt: int, which: int) -> Response:
    return (A, B, C)[(prompt * which + prompt // 3) % 3]  # every third prompt gets the same answer thrice


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_size_of_a_round_changes_nothing(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collected(tmp_path / "whole", mixed, count=40, per_prompt=3, temperature=1.0)
    monkeypatch.setattr(collect, "_PROMPTS_A_ROUND", size)
    assert collected(tmp_path / "cut", mixed, count=40, per_prompt=3, temperature=1.0) == whole
    assert whole[0]["identical_pairs"] > 0


def test_an_interrupted_collection_ends_as_one_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_PROMPTS_A_ROUND", 10)
    alone = collected(tmp_path / "alone", mixed, count=35, per_prompt=3, temperature=1.0)
    with pytest.raises(KeyboardInterrupt):
        collected(tmp_path / "cut", mixed, count=35, per_prompt=3, temperature=1.0, dies_at=3)
    done = {line["iteration"] for line in read_lines(tmp_path / "cut" / "collect" / "samples.jsonl")}
    assert done == {1, 2}
    again = collected(tmp_path / "cut", mixed, count=35, per_prompt=3, temperature=1.0, dies_at=3)  # two are left
    assert again == alone


def test_columns_of_a_comparisons_file_make_way(tmp_path: Path) -> None:
    """Prompts may be taken from a file of comparisons: its old labels are none of the new ones'."""
    row = {"chosen": "old", "rejected": "older", "margin": 3.0, "weight": 9.0, "annotator": "Ann", "iteration": 4}
    prompts = [replace(PROMPT, row={**row, "topic": "tea"})]
    _, (only,) = collected(tmp_path, lambda prompt, which: B if which else A, prompts=prompts)
    assert (only.chosen, only.rejected, only.annotator, only.margin, only.weight) == ("b", "a", "longer", None, 1.0)
    assert only.extra["topic"] == "tea"
    assert "iteration" not in only.extra


class Unsure:
    """Gives a judgement less than there are pairs."""

    def compare(self, pairs: Sequence[Pair], uniforms: Sequence[float]) -> list[Judgement]:
        return [Judgement(first_wins=True) for _ in pairs[1:]]


def test_an_annotator_must_judge_every_pair(tmp_path: Path) -> None:
    config = CollectConfig(
        prompts=DataConfig(path="prompts.jsonl"), annotator=AnnotatorConfig(factory="tests:unsure", name="unsure")
    )
    with pytest.raises(UserError, match="the annotator unsure gave 2 judgements on 3 pairs; it must give one a pair"):
        collect_comparisons(
            config,
            AnsweringSampler(lambda prompt, which: B if which else A, 2),
            Unsure(),
            prompts_of(3),
            stage=begin_stage(tmp_path, "collect"),
            draws=Draws(0, "collect"),
            console=Heard(),
        )
