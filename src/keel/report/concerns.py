"""What in a run is out of its healthy range (docs/metrics.md), a sentence each: measured, and what it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from keel.instruments.alarms import AFTER, alarms
from keel.report import assessment
from keel.report.facts import reliability_note, sentence, summary
from keel.report.numbers import dig, known, number, one_scale, percent, percent_range, series
from keel.runs.fork import measured_since
from keel.runs.read import RunView, StageView

_OVERFIT = 1.05  # validation loss at the end, as a multiple of its lowest
_MOST_OVER_TARGET = 1.5
_FORGOTTEN = 1.0  # nats a token
_LATE = 0.25  # share of the iterations that "at the end" is a mean over
_MISSING = re.compile(r"reward/.+/missing")
_RANGES: tuple[tuple[str, float, float, Callable[[float], str], str], ...] = (  # metric, least, most, words
    ("objective/ended", 0.9, 1.0, percent, "Only {} of the responses end by themselves: raise max_new_tokens."),
    ("ppo/policy/clipfrac", 0.0, 0.2, percent, "{} of the tokens are clipped: the steps are too large."),
    (
        "objective/groups_alike",
        0.0,
        0.5,
        percent,
        "In {} of the groups all responses score alike: only the KL teaches.",
    ),
    ("ppo/val/explained_variance", 0.0, 1.0, number, "The critic explains nothing: its explained variance is {}."),
)


@dataclass(frozen=True)
class Concern:
    """Something to look into; a `grave` one qualifies the verdict."""

    stage: str
    sentence: str
    grave: bool = False


def concerns(run: RunView) -> list[Concern]:
    """Every concern of a run, in the order of its stages."""
    found = [
        _overfitting(run, "sft"),
        *_reward(run),
        *(Concern("reward", alarm) for alarm in dig(assessment.of_run(run), "alarms") or []),
        _overfitting(run, "reward"),
        _overfitting(run, "direct"),
        *_ppo(run),
        *_evaluate(run),
    ]
    return [*(concern for concern in found if concern), *_versions(run)]


def spent_kl(run: RunView) -> float | None:
    """Nats a response: the evaluation's, else PPO's last on held-out prompts, else the last rollout's."""
    ppo = run.stages.get("ppo")
    measured = [known(summary(run, "evaluate").get("kl"))]
    measured += [found.ys[-1] for key in ("eval/kl", "objective/kl") if (found := series(ppo, key))]
    return next((value for value in measured if value is not None), None)


def instruments(run: RunView) -> list[Concern]:
    """The alarms of over-optimisation that PPO's last evaluations still raise."""
    ppo = run.stages.get("ppo")
    after = int(known(dig(run.recipe, "ppo", "evaluate", "alarm_after")) or AFTER)
    raised = alarms(ppo.metrics, after, measured_since(ppo.path)) if ppo else []
    standing = [alarm for alarm in raised if alarm.standing]
    taken = known(summary(run, "ppo").get("model_of_iteration"))
    past = f"; the policy of iteration {taken:.0f}, before that, was handed on" if taken is not None else ""
    return [
        Concern("ppo", sentence(alarm.latest), alarm.grave)
        if taken is None or taken >= alarm.iteration
        else Concern("ppo", sentence(alarm.latest + past))
        for alarm in standing
    ]


def _overfitting(run: RunView, stage: str) -> Concern | None:
    losses = series(run.stages.get(stage), f"{stage}/validation/loss")
    if not losses or losses.ys[-1] <= _OVERFIT * min(losses.ys):
        return None
    at = losses.xs[losses.ys.index(min(losses.ys))]
    return Concern(
        stage,
        f"The validation loss was lowest at step {at:.0f} ({number(min(losses.ys), 3)}) and ended at "
        f"{number(losses.ys[-1], 3)}: overfitting; fewer epochs.",
    )


def _reward(run: RunView) -> Iterator[Concern]:
    found = summary(run, "reward")
    common, level = known(found.get("commonest_level")), found.get("level_accuracy_interval") or [None]
    if common is not None and (known(level[0]) or 0.0) <= common:
        yield Concern(
            "reward",
            "Not clearly better than always saying the commonest level: "
            f"{percent_range(level)} beside {percent(common)}.",
        )
    interval, longer = found.get("accuracy_interval") or [None], known(found.get("longer_wins"))
    shown, least = percent_range(interval), known(interval[0])
    if not shown or least is None:
        return
    if least <= 0.5:
        yield Concern("reward", f"It may be no better than a coin: right in {shown} of held-out pairs.", grave=True)
    elif longer is not None and least <= max(longer, 1 - longer):
        rule, rate = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
        yield Concern(
            "reward", f"Not clearly better than always picking the {rule} response: {shown} beside {percent(rate)}."
        )


def _ppo(run: RunView) -> Iterator[Concern | None]:
    ppo = run.stages.get("ppo")
    if stopped := summary(run, "ppo").get("stopped"):
        yield Concern("ppo", f"It ended early: {str(stopped).rstrip('.')}.")
    yield _falling_objective(ppo)
    yield _spent_too_much(run)
    yield _negative_kl(ppo)
    for key, low, high, form, words in _RANGES:
        value = _late(ppo, key)
        if value is not None and not low <= value <= high:
            yield Concern("ppo", words.format(form(value)))
    yield from _without_opinion(ppo)
    yield from instruments(run)


def _falling_objective(ppo: StageView | None) -> Concern | None:
    objective = series(one_scale(ppo), "eval/objective")
    if len(objective.ys) < 2 or objective.ys[-1] >= objective.ys[0]:
        return None
    return Concern(
        "ppo",
        f"The objective, score − β·KL, ended below its start: {number(objective.ys[0])} → {number(objective.ys[-1])}.",
        grave=True,
    )


def _spent_too_much(run: RunView) -> Concern | None:
    kl = spent_kl(run)
    for key, most in (("budget", 1.0), ("target", _MOST_OVER_TARGET)):
        limit = known(dig(run.recipe, "ppo", "kl", key))
        if kl is not None and limit is not None and kl > most * limit:
            return Concern("ppo", f"The KL is {number(kl)} nats a response, past its {key} of {limit:g}.", grave=True)
    return None


def _negative_kl(ppo: StageView | None) -> Concern | None:
    error = series(ppo, "objective/kl_standard_error")
    errors = dict(zip(error.xs, error.ys, strict=True))
    kl = series(ppo, "objective/kl")
    count = sum(y < -max(5 * errors.get(x, 0.0), 1e-3) for x, y in zip(kl.xs, kl.ys, strict=True))
    if not count:
        return None
    return Concern("ppo", f"The KL estimate was impossibly negative in {count} iterations: an error.", grave=True)


def _without_opinion(ppo: StageView | None) -> Iterator[Concern]:
    names = {key for row in (ppo.metrics if ppo else []) for key in row if _MISSING.fullmatch(key)}
    for name in sorted(names):
        share = _late(ppo, name)
        if share:
            reward = name.removeprefix("reward/").removesuffix("/missing")
            yield Concern("ppo", f"The reward “{reward}” had no opinion on {percent(share, 1)} of the responses.")


def _evaluate(run: RunView) -> Iterator[Concern]:
    found = summary(run, "evaluate")
    if (note := reliability_note(run)) and not dig(found, "frontier", "reliable"):
        yield Concern("evaluate", note)
    before, after = (known(dig(found, "demonstrations", f"{who}_nll")) for who in ("reference", "policy"))
    if before is not None and after is not None and after > before + _FORGOTTEN:
        yield Concern(
            "evaluate",
            f"Demonstrations have become far less likely ({number(before)} → {number(after)} nats a token): abilities "
            "may have been lost.",
        )


def _versions(run: RunView) -> Iterator[Concern]:
    for name in ("keel", "torch", "transformers", "python"):
        values = dict.fromkeys(str(start[name]) for start in run.starts if name in start)
        if len(values) > 1:
            yield Concern("run", f"It was resumed under another {name}: {' → '.join(values)}.")


def _late(stage: StageView | None, key: str) -> float | None:
    """The mean of a metric over the last quarter of what was logged."""
    values = series(stage, key).ys
    last = values[-max(1, round(_LATE * len(values))) :]
    return sum(last) / len(last) if last else None
