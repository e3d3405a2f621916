"""What a run's models say: before and after, and over the iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.inputs import COMPARISONS, COMPARISONS_FILE
from keel.report.facts import labels
from keel.report.numbers import known, number
from keel.runs.metrics import read_lines
from keel.runs.read import RunView, StageView


@dataclass(frozen=True)
class Answer:
    """One response in a before/after sample; `run` is its run's number, None for the start model's."""

    label: str
    run: int | None
    text: str
    note: str


@dataclass(frozen=True)
class Sample:
    """A prompt, what the start model answers, and what every run's policy answers."""

    prompt: str
    answers: tuple[Answer, ...]


def samples(runs: Sequence[RunView]) -> list[Sample]:
    """Before and after on the evaluation's prompts, else on PPO's held-out ones; a prompt once for all runs."""
    by_prompt: dict[str, list[Answer]] = {}
    for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        for prompt, before, after in _pairs(run, index, label):
            answers = by_prompt.setdefault(prompt, [])
            known_before = [answer.text for answer in answers if answer.run is None]
            if before.text not in known_before:
                answers.insert(len(known_before), before)
            answers.append(after)
    return [Sample(prompt, tuple(answers)) for prompt, answers in by_prompt.items()]


def rule(runs: Sequence[RunView]) -> str:
    """How the samples were chosen: by their place, never by what they say."""
    if any(run.stages["evaluate"].samples for run in runs if "evaluate" in run.stages):
        return "prompts of the evaluation in the order of its data, with each model’s first response"
    return "prompts that PPO holds out in the order of its data, at the start and at the last evaluation"


def _pairs(run: RunView, index: int, label: str) -> list[tuple[str, Answer, Answer]]:
    evaluate, ppo = run.stages.get("evaluate"), run.stages.get("ppo")
    if evaluate and evaluate.samples:
        return [
            (
                str(row.get("prompt")),
                Answer("before", None, str(row.get("reference")), _note(row, "reference_")),
                Answer(f"after: {label}", index, str(row.get("policy")), _note(row, "policy_")),
            )
            for row in evaluate.samples
        ]
    over_time = prompts_over_time(ppo)
    return [
        (
            prompt,
            Answer("before", None, str(rows[0].get("response")), _note(rows[0])),
            Answer(f"after: {label}", index, str(rows[-1].get("response")), _note(rows[-1])),
        )
        for prompt, rows in over_time.items()
        if len(rows) > 1
    ]


def first_comparisons(runs: Sequence[RunView]) -> list[Sample]:
    """The first comparison that each run's collect stage wrote down."""
    found = []
    for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        collect = run.stages.get("collect")
        row = _first_comparison(collect) if collect else None
        if row is not None:
            whose = f" by {label}" if len(runs) > 1 else ""
            preferred = Answer(f"preferred{whose}", index, str(row["chosen"]), "")
            rejected = Answer(f"rejected{whose}", None, str(row["rejected"]), "")
            found.append(Sample(str(row.get("prompt")), (preferred, rejected)))
    return found


def _first_comparison(collect: StageView) -> dict[str, Any] | None:
    """Of what the stage hands on; before its end of its samples, which say nothing of what people have not judged."""
    rows = [*read_lines(collect.path / COMPARISONS / COMPARISONS_FILE), *collect.samples]
    return next((row for row in rows if {"chosen", "rejected"} <= row.keys()), None)


def prompts_over_time(ppo: StageView | None) -> dict[str, list[dict[str, Any]]]:
    """PPO's held-out samples by prompt, each in order of the iterations."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ppo.samples if ppo else []:
        earlier = found.setdefault(str(row.get("prompt")), [])
        if not earlier or earlier[-1]["iteration"] != row["iteration"]:  # the same prompt may be held out twice
            earlier.append(row)
    return found


def over_time(run: RunView, prompts: int, times: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """The first prompts, each with its response at some iterations from the first to the last, evenly spread."""
    found = list(prompts_over_time(run.stages.get("ppo")).items())[:prompts]
    return [(prompt, _spread(rows, times)) for prompt, rows in found]


def _spread(rows: Sequence[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    last = len(rows) - 1
    kept = sorted({round(last * index / (times - 1)) for index in range(times)})
    return [rows[index] for index in kept]


def _note(row: dict[str, Any], prefix: str = "") -> str:
    parts = [("score", row.get(f"{prefix}score")), ("utility", row.get(f"{prefix}utility"))]
    if prefix != "reference_":
        parts.append(("KL", row.get("kl")))
    return ", ".join(f"{name} {number(value)}" for name, value in parts if known(value) is not None)
