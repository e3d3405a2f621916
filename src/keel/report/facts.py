"""What a run's files say in words: for the page and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.numbers import ABSENT, dig, duration, known, number, percent, percent_interval, percent_range, series
from keel.runs.layout import STAGES
from keel.runs.read import RunView, StageView


@dataclass(frozen=True)
class Row:
    """One line of the comparison: the reference's value, and one a run."""

    label: str
    reference: str
    values: tuple[str, ...]


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


def labels(runs: Sequence[RunView]) -> list[str]:
    """A name for each run, told apart by its directory where two have the same."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.name} ({run.path.resolve().name})" for run in runs]


def summary(run: RunView, stage: str) -> dict[str, Any]:
    """What a finished stage reported; empty while there is nothing."""
    view = run.stages.get(stage)
    return (view.summary if view else None) or {}


def describe_model(run: RunView) -> str:
    """The base, or the architecture of a model from nothing."""
    scratch, base = dig(run.recipe, "model", "scratch"), dig(run.recipe, "model", "base")
    if scratch:
        return f"a model from nothing ({scratch.get('layers')} layers, {scratch.get('hidden')} wide)"
    return str(base) if base else "a model"


def state(run: RunView, stage: str) -> str | None:
    """None if the stage is finished, else a sentence's end that says where it stands."""
    view = run.stages.get(stage)
    if view is None:
        named = not run.recipe or run.recipe.get(stage) is not None
        return f"{stage} has not begun" if named else f"its recipe has no {stage} stage"
    if view.finished:
        return None
    done = view.metrics[-1]["iteration"] if view.metrics else None
    planned = dig(run.recipe, "ppo", "iterations") if stage == "ppo" else None
    if done is None:
        return f"{stage} has begun but logged nothing yet"
    return f"{stage} is not finished: {done:.0f} {f'of {planned} ' if planned else ''}steps so far"


def verdict(run: RunView) -> tuple[str, str]:
    """(good | even | bad | open, a sentence): did it work? By the true utility where it is known."""
    evaluated = summary(run, "evaluate")
    judge = "utility" if "utility" in evaluated else "score"
    bounds, rate = dig(evaluated, judge, "win_rate_interval"), dig(evaluated, judge, "win_rate")
    if not percent_interval(bounds) or known(rate) is None:
        where = next((sentence for stage in reversed(run.stages) if (sentence := state(run, stage))), None)
        return "open", f"Not judged yet: {where or state(run, 'evaluate') or 'the evaluation found no win rate'}."
    by = "the true utility" if judge == "utility" else "the reward model (the true utility is not known)"
    odds = f"preferred to its reference in {percent(rate)} of comparisons ({percent_range(bounds)}) by {by}"
    if bounds[0] > 0.5:
        return "good", f"It worked: {odds}."
    proxy = dig(evaluated, "score", "win_rate")
    if bounds[1] < 0.5:
        fooled = f" while the reward model prefers it in {percent(proxy)}: it was gamed" if (proxy or 0) > 0.5 else ""
        return "bad", f"It got worse: {odds}{fooled}."
    return "even", f"No clear difference: {odds}."


def reliability_note(run: RunView) -> str | None:
    """Whether the share of the KL's worth can be trusted; None where it was not measured."""
    found = dig(summary(run, "evaluate"), "frontier")
    if not found or known(found.get("bound")) is None:
        return None
    samples, half = found.get("samples_a_prompt"), known(found.get("bound_from_half_the_samples"))
    measured = f"{samples} reference samples a prompt on {found.get('prompts')} prompts"
    halves = (
        f"; half of them give a bound of {number(half)} instead of {number(found['bound'])}" if half is not None else ""
    )
    if found.get("reliable"):
        return f"The bound comes from {measured}{halves}: reliable at this KL."
    limit = number(found.get("reliable_up_to_kl"), 1)
    return f"The bound comes from {measured}{halves}: not reliable, because the KL is beyond log n = {limit} nats."


def peak_note(run: RunView) -> str | None:
    """A sentence if the true utility fell by more than a fifth of its gain while the score still rose."""
    ppo = run.stages.get("ppo")
    utility, score = series(ppo, "eval/utility"), series(ppo, "eval/scores")
    if len(utility.ys) < 3 or utility.xs != score.xs:
        return None
    best = max(range(len(utility.ys)), key=lambda index: utility.ys[index])
    gain, fall = utility.ys[best] - utility.ys[0], utility.ys[best] - utility.ys[-1]
    if fall <= 0.2 * max(gain, 1e-9) or score.ys[-1] <= score.ys[best]:
        return None
    return (
        f"Over-optimisation: the true utility peaked at iteration {utility.xs[best]:.0f} and fell from "
        f"{number(utility.ys[best])} to {number(utility.ys[-1])}, while the score rose on from "
        f"{number(score.ys[best])} to {number(score.ys[-1])}."
    )


def measures_note(run: RunView) -> str | None:
    """What became of the recipe's further measures, from the reference to the policy."""
    found = summary(run, "evaluate")
    before, after = dig(found, "reference", "measures") or {}, dig(found, "policy", "measures") or {}
    changes = [f"{name} {number(before.get(name))} → {number(value)}" for name, value in after.items()]
    return f"Measures, reference → policy: {', '.join(changes)}." if changes else None


def comparison(runs: Sequence[RunView]) -> list[Row]:
    """The numbers of the evaluation and the reward model, one row each; rows that no run knows are left out."""
    evaluated = [summary(run, "evaluate") for run in runs]
    both: list[tuple[str, tuple[str, ...], Callable[[Any], str]]] = [
        ("score", ("score",), number),
        ("true utility", ("utility",), number),
    ]
    measures = {name: None for found in evaluated for name in dig(found, "policy", "measures") or {}}
    both += [(name, ("measures", name), number) for name in measures]
    texts: list[tuple[str, tuple[str, ...], Callable[[Any], str]]] = [
        ("length (tokens)", ("length",), lambda value: number(value, 1)),
        ("ended by itself", ("ended",), percent),
        ("distinct-2", ("distinct_2",), number),
        ("repetition", ("repetition",), percent),
    ]
    rows = [_beside(label, keys, form, evaluated) for label, keys, form in both]
    rows += [_of_runs(label, [form(found) for found in evaluated]) for label, form in _AGAINST_REFERENCE]
    rows += [_beside(label, keys, form, evaluated) for label, keys, form in texts]
    nll = [
        (dig(found, "demonstrations", "reference_nll"), dig(found, "demonstrations", "policy_nll"))
        for found in evaluated
    ]
    rows.append(Row("NLL of demonstrations", _merged(number(r) for r, _ in nll), tuple(number(p) for _, p in nll)))
    rows += [_of_runs(label, [form(summary(run, "reward")) for run in runs]) for label, form in _REWARD_MODEL]
    return [row for row in rows if {row.reference, *row.values} - {ABSENT, ""}]


def _with_interval(found: Any, *keys: str) -> str:
    rate = dig(found, *keys, "win_rate")
    return f"{percent(rate)} {percent_interval(dig(found, *keys, 'win_rate_interval'))}".strip()


def _kl(found: Any) -> str:
    kl, error = dig(found, "kl"), dig(found, "kl_standard_error")
    return number(kl) if known(error) is None else f"{number(kl)} ± {number(error)}"


def _reached(found: Any) -> str:
    reached = percent(dig(found, "frontier", "reached"))
    return reached if reached == ABSENT or dig(found, "frontier", "reliable") else f"{reached} (unreliable)"


_AGAINST_REFERENCE: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("wins by true utility", lambda found: _with_interval(found, "utility")),
    ("wins by score", lambda found: _with_interval(found, "score")),
    ("KL (nats a response)", _kl),
    ("KL (nats a token)", lambda found: number(dig(found, "kl_per_token"), 3)),
    ("reached of KL's worth", _reached),
)
_REWARD_MODEL: tuple[tuple[str, Callable[[Any], str]], ...] = (
    (
        "reward model right",
        lambda found: (
            f"{percent(dig(found, 'accuracy'), 1)} {percent_interval(dig(found, 'accuracy_interval'))}".strip()
        ),
    ),
    ("… noise allows", lambda found: percent(dig(found, "noise_ceiling"), 1)),
    ("… longer wins", lambda found: percent(dig(found, "longer_wins"), 1)),
)


def _beside(label: str, keys: tuple[str, ...], form: Callable[[Any], str], evaluated: Sequence[Any]) -> Row:
    reference = _merged(form(dig(found, "reference", *keys)) for found in evaluated)
    return Row(label, reference, tuple(form(dig(found, "policy", *keys)) for found in evaluated))


def _of_runs(label: str, values: Sequence[str]) -> Row:
    return Row(label, "", tuple(values))


def _merged(values: Any) -> str:
    """The reference's value once if all runs agree, else one a run: each judges it by its own reward model."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def timings(runs: Sequence[RunView]) -> list[Row]:
    """How long every finished stage took, one row a stage; a stage that was linked from another run took no time."""
    rows = []
    for stage in STAGES:
        reused = [stage in run.stages and run.stages[stage].path.is_symlink() for run in runs]
        times = [duration(summary(run, stage).get("seconds")) for run in runs]
        rows.append(_of_runs(stage, ["reused" if old else time for old, time in zip(reused, times, strict=True)]))
    return [row for row in rows if set(row.values) - {ABSENT}]


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


def prompts_over_time(ppo: StageView | None) -> dict[str, list[dict[str, Any]]]:
    """PPO's held-out samples by prompt, each in order of the iterations."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ppo.samples if ppo else []:
        earlier = found.setdefault(str(row.get("prompt")), [])
        if not earlier or earlier[-1]["iteration"] != row["iteration"]:  # the same prompt may be held out twice
            earlier.append(row)
    return found


def _note(row: dict[str, Any], prefix: str = "") -> str:
    parts = [("score", row.get(f"{prefix}score")), ("utility", row.get(f"{prefix}utility"))]
    if prefix != "reference_":
        parts.append(("KL", row.get("kl")))
    return ", ".join(f"{name} {number(value)}" for name, value in parts if known(value) is not None)
