"""What in a run is out of its healthy range, a sentence each: measured, and what it means."""

from __future__ import annotations

from collections.abc import Iterator

from keel.instruments.alarms import AFTER
from keel.instruments.concerns import Concern, ended_early, of_evaluations, of_ppo, of_reward, of_training
from keel.report import assessment
from keel.report.facts import reliability_note, summary
from keel.report.numbers import curves, dig, known, number, series
from keel.runs.fork import measured_since
from keel.runs.read import RunView

_FORGOTTEN = 1.0  # nats a token


def concerns(run: RunView) -> list[Concern]:
    """Every concern of a run, in the order of its stages."""
    return [
        *_overfitting(run, "sft"),
        *of_reward(summary(run, "reward")),
        *(Concern("reward", alarm) for alarm in dig(assessment.of_run(run), "alarms") or []),
        *_overfitting(run, "reward"),
        *_overfitting(run, "direct"),
        *_ppo(run),
        *_evaluate(run),
        *_versions(run),
    ]


def spent_kl(run: RunView) -> float | None:
    """Nats a response: the evaluation's, else PPO's last on held-out prompts, else the last rollout's."""
    ppo = run.stages.get("ppo")
    measured = [known(summary(run, "evaluate").get("kl"))]
    measured += [found.ys[-1] for key in ("eval/kl", "objective/kl") if (found := series(ppo, key))]
    return next((value for value in measured if value is not None), None)


def instruments(run: RunView) -> list[Concern]:
    """The alarms of over-optimisation that PPO's last evaluations still raise."""
    ppo = run.stages.get("ppo")
    if ppo is None:
        return []
    after = int(known(dig(run.recipe, "ppo", "evaluate", "alarm_after")) or AFTER)
    taken = known(summary(run, "ppo").get("model_of_iteration"))
    return list(of_evaluations(ppo.metrics, after=after, since=measured_since(ppo.path), taken=taken))


def _overfitting(run: RunView, stage: str) -> Iterator[Concern]:
    view = run.stages.get(stage)
    key = f"{stage}/validation/loss"
    if view is not None and view.finished:
        yield from of_training(stage, {key: series(view, key)})


def _ppo(run: RunView) -> Iterator[Concern]:
    ppo = run.stages.get("ppo")
    if ppo is None:
        return
    planned, done = known(dig(run.recipe, "ppo", "iterations")), ppo.metrics[-1]["iteration"] if ppo.metrics else 0
    yield from ended_early("ppo", summary(run, "ppo"))
    yield from of_ppo(
        curves(ppo),
        progress=1.0 if ppo.finished or not planned else done / planned,
        spent=spent_kl(run),
        limits=dig(run.recipe, "ppo", "kl") or {},
        since=measured_since(ppo.path),
    )
    yield from instruments(run)


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
