"""The stages in reading order: for each, the few figures that matter, what is worth saying, and its curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from keel.instruments.words import sentence
from keel.report import against_kl, assessment, audit_section, curves, facts
from keel.report.about import annotator, method, source, standing
from keel.report.facts import Row, of_runs, summary
from keel.report.figures import Panel
from keel.report.numbers import ABSENT, count, dig, known, number, one_scale, percent, series
from keel.report.samples import Sample, first_comparisons
from keel.runs.fork import measured_since
from keel.runs.read import RunView

Part = tuple[str, Callable[[Any], str]]


@dataclass(frozen=True)
class Stage:
    """`lead` says what the stage is for; `notes` what is missing or worth saying; `rows` are its figures."""

    anchor: str
    title: str
    lead: str
    notes: list[str]
    rows: list[Row]
    panels: list[Panel]
    samples: list[Sample] = field(default_factory=list)

    @property
    def coloured(self) -> bool:
        """Whether a colour stands for a run: not where all share what is drawn."""
        return any(curve.colour.startswith("run") for panel in self.panels for curve in panel.curves)


def stages(runs: Sequence[RunView]) -> list[Stage]:
    """The stages that any of the runs has, or means to have."""

    def there(*made: Callable[[Sequence[RunView]], Stage]) -> list[Stage]:
        found = [make(runs) for make in made]
        return [stage for stage in found if any(standing(run, stage.anchor) for run in runs)]

    audit = _audit(runs)
    audited = [audit] if audit.rows or audit.notes else []
    return [*there(_sft, _collect), *audited, *there(_reward), *_assessed(runs), *there(_direct, _ppo, _evaluate)]


def each(runs: Sequence[RunView], find: Callable[[RunView], str | None]) -> list[str]:
    """What is found of each run, said with its name where there are several."""
    names = facts.labels(runs)
    said = [(name, found) for name, run in zip(names, runs, strict=True) if (found := find(run))]
    return [f"{name}: {found}" if len(runs) > 1 else found for name, found in said]


def _sft(runs: Sequence[RunView]) -> Stage:
    parts: list[Part] = [
        ("data", lambda run: source(dig(run.recipe, "sft", "data")) or ABSENT),
        ("demonstrations", _count("sft", "rows")),
        ("held out", _count("sft", "validation_rows")),
        ("response tokens", _count("sft", "response_tokens")),
        ("optimiser steps", _count("sft", "steps")),
        ("validation loss (nats a token)", _change("sft", "sft/validation/loss", 3)),
    ]
    lead = "The model learns to answer as the demonstrations do. What comes out is the reference for all that follows."
    notes = _missing(runs, "sft") + _shared(runs, "sft")
    return Stage("sft", "Supervised fine-tuning", lead, notes, of_runs(parts, runs), curves.sft_panels(runs))


def _collect(runs: Sequence[RunView]) -> Stage:
    parts: list[Part] = [
        ("annotator", lambda run: annotator(run) or ABSENT),
        ("prompts", _count("collect", "prompts")),
        ("comparisons", _count("collect", "comparisons")),
        ("pairs of equal responses, left out", _count("collect", "identical_pairs")),
        ("the most that its noise allows", lambda run: percent(summary(run, "collect").get("noise_ceiling"), 1)),
    ]
    lead = "Responses of the model before alignment are compared two at a time; what is preferred is written down."
    notes = _missing(runs, "collect") + _shared(runs, "collect")
    return Stage("collect", "Feedback", lead, notes, of_runs(parts, runs), [], first_comparisons(runs))


def _audit(runs: Sequence[RunView]) -> Stage:
    lead = (
        "What the data look like that preferences were learned from, as they are now; intervals are 95%. "
        "keel data audit says which rows."
    )
    notes, rows = audit_section.of_runs(runs)
    return Stage("audit", "Preference data", lead, notes, rows, [])


def _reward(runs: Sequence[RunView]) -> Stage:
    parts: list[Part] = [
        ("data", lambda run: source(dig(run.recipe, "reward", "data")) or ABSENT),
        ("trained on", lambda run: facts.learned_from(summary(run, "reward"))),
        ("pairs held out", _count("reward", "validation_pairs")),
        ("ties among them, left out", _ties),
        ("held-out loss", _validation("loss", lambda value: number(value, 3))),
        ("by the levels’ frequencies alone", lambda run: number(summary(run, "reward").get("prior_loss"), 3)),
        ("responses accepted", _validation("accepted", percent)),
        ("accepted by the model", _validation("accept_rate", percent)),
    ]
    lead = (
        "A model learns to give the preferred response the higher score. Right means: it does so for a held-out pair."
    )
    rows = [*of_runs(parts, runs), *facts.reward_model(runs), *of_runs([("share of what is allowed", _share)], runs)]
    notes = _missing(runs, "reward") + _shared(runs, "reward")
    return Stage("reward", "Reward model", lead, notes, rows, curves.reward_panels(runs))


def _assessed(runs: Sequence[RunView]) -> list[Stage]:
    """What `keel evaluate RUN` wrote, of the runs that have it."""
    found = curves.sources(runs, "reward")
    judged = [(one, source) for source in found if (one := assessment.read(source.stage.path)) is not None]
    if not judged:
        return []
    lead = (
        "What the scores can be trusted with, on comparisons that were not trained on, on replies the reference gives "
        "and would not give, and on probes that nobody should prefer."
    )
    own = [assessment.of_run(run) for run in runs]
    notes = each(runs, lambda run: assessment.about(assessment.of_run(run)))
    unseen = [
        (one, source.colour)
        for one, source in judged
        if not (one["held_out"] and dig(source.stage.summary, "reliability"))
    ]
    pictures = [*assessment.own_reliability(unseen), *assessment.panels([(one, by.colour) for one, by in judged])]
    return [Stage("assessment", "Reward model, assessed", lead, notes, assessment.rows(own), pictures)]


def _direct(runs: Sequence[RunView]) -> Stage:
    parts: list[Part] = [
        ("method", lambda run: method(run) or ABSENT),
        ("data", lambda run: source(dig(run.recipe, "direct", "data")) or ABSENT),
        ("preferences trained on", _count("direct", "rows")),
        ("preferences held out", _count("direct", "validation_rows")),
        ("optimiser steps", _count("direct", "steps")),
        ("held out, on the right side", lambda run: percent(dig(summary(run, "direct"), "validation", "accuracy"), 1)),
        ("implicit margin, held out", _change("direct", "direct/validation/margin")),
        ("log-probability of the chosen, held out", _change("direct", "direct/validation/logprobs/chosen", 1)),
        ("log-probability of the rejected, held out", _change("direct", "direct/validation/logprobs/rejected", 1)),
    ]
    lead = (
        "The policy is trained on the preferences themselves: to make what was preferred more likely, and what was not "
        "less, without a reward model and without sampling. Arrows lead from the first validation to the last."
    )
    notes = _missing(runs, "direct") + _shared(runs, "direct")
    return Stage("direct", "Direct preferences", lead, notes, of_runs(parts, runs), curves.direct_panels(runs))


def _ppo(runs: Sequence[RunView]) -> Stage:
    parts: list[Part] = [
        ("method", facts.online_method),
        ("rewards", _rewards),
        ("iterations", _iterations),
        ("responses an iteration", lambda run: count(dig(run.recipe, "ppo", "rollout_batch"))),
        ("held-out score", _change("ppo", "eval/scores")),
        ("held-out true utility", _change("ppo", "eval/utility")),
        ("held-out KL (nats a response)", _change("ppo", "eval/kl")),
        ("KL coefficient β", _change("ppo", "objective/kl_coef", 3)),
        ("held-out judge’s score", _change("ppo", "eval/judge")),
        ("best held-out objective", _best(by_peak=False)),
        ("peak of the held-out score", _best(by_peak=True)),
        ("true utility’s law, d = √KL", _law("utility")),
        ("judge’s law, d = √KL", _law("judge")),
        ("weights handed on", _handed_on),
    ]
    lead = (
        "The policy is trained towards higher scores, held to the reference by the price β on every nat of KL. "
        "Arrows lead from the start to the end of training."
    )
    notes = _missing(runs, "ppo") + _shared(runs, "ppo") + _measured_otherwise(runs)
    panels = [*curves.ppo_panels(runs), *against_kl.truth_panels(runs), *against_kl.held_out_panels(runs)]
    return Stage("ppo", "PPO", lead, notes, of_runs(parts, runs), panels)


def _evaluate(runs: Sequence[RunView]) -> Stage:
    lead = (
        "Policy and reference answer the same held-out prompts. Intervals are 95%: a paired bootstrap over prompts "
        "(a tie counts one half)."
    )
    several = (
        ["Where the reference has several values, each run’s own reward model or utility judged it, in order."]
        if len(runs) > 1
        else []
    )
    notes = _missing(runs, "evaluate") + each(runs, facts.reliability_note) + each(runs, _unknown_truth) + several
    panels = against_kl.frontier_panels(runs)
    if not any("ppo" in run.stages for run in runs):  # beside whose course it stands
        panels += against_kl.held_out_panels(runs)
    return Stage("evaluate", "Evaluation", lead, notes, facts.evaluation(runs), panels)


def _count(stage: str, key: str) -> Callable[[RunView], str]:
    return lambda run: count(summary(run, stage).get(key))


def _measured_otherwise(runs: Sequence[RunView]) -> list[str]:
    found = {name: run.stages.get("ppo") for name, run in zip(facts.labels(runs), runs, strict=True)}
    forks = {name: measured_since(ppo.path) for name, ppo in found.items() if ppo is not None}
    return [
        f"{name} was forked at iteration {since} and measured otherwise from there: its held-out scores, their alarms "
        "and their laws are those of the iterations after it."
        for name, since in forks.items()
        if since is not None
    ]


def _change(stage: str, metric: str, digits: int = 2) -> Callable[[RunView], str]:
    """The metric's first and last value, or the one there is; of a held-out score those of one scale."""

    def form(run: RunView) -> str:
        view = run.stages.get(stage)
        if metric in ("eval/scores", "eval/utility", "eval/judge"):
            view = one_scale(view)
        values = [number(value, digits) for value in series(view, metric).ys]
        if len(set(values)) < 2:
            return values[0] if values else ABSENT
        return f"{values[0]} → {values[-1]}"

    return form


def _ties(run: RunView) -> str:
    return count(summary(run, "reward").get("validation_ties") or None)


def _validation(metric: str, form: Callable[[Any], str]) -> Callable[[RunView], str]:
    """A metric on all that the reward stage held out, at its end."""
    return lambda run: form(dig(summary(run, "reward"), "validation", metric))


def _share(run: RunView) -> str:
    right, allowed = (known(summary(run, "reward").get(key)) for key in ("accuracy", "noise_ceiling"))
    return percent(right / allowed) if right is not None and allowed else ABSENT


def _rewards(run: RunView) -> str:
    parts = []
    for reward in dig(run.recipe, "ppo", "reward") or []:
        name = source(reward.get("function") or reward.get("model") or reward.get("name") or "") or "a reward"
        weight = known(reward.get("weight"))
        parts.append(name if weight in (None, 1.0) else f"{weight:g} × {name}")
    return " + ".join(parts) or ABSENT


def _iterations(run: RunView) -> str:
    planned = known(dig(run.recipe, "ppo", "iterations"))
    done = known(summary(run, "ppo").get("iterations"))
    if done is None or planned is None or done == planned:
        return count(done)
    return f"{count(done)} of {count(planned)}"


def _best(*, by_peak: bool) -> Callable[[RunView], str]:
    """What picked the best checkpoint: the held-out score if the run was to end at its peak, else the objective."""

    def form(run: RunView) -> str:
        found = summary(run, "ppo")
        best = number(found.get("best_objective"))
        if best == ABSENT or by_peak != (dig(run.recipe, "ppo", "evaluate", "stop_at_peak") is not None):
            return ABSENT
        return f"{best} at iteration {count(found.get('best_iteration'))}"

    return form


def _law(name: str) -> Callable[[RunView], str]:
    """The law of reinforcement learning's over-optimisation as it was fitted."""

    def form(run: RunView) -> str:
        found = dig(summary(run, "ppo"), "fits", name, "log")
        if known(dig(found, "alpha")) is None:
            return ABSENT
        peak = number(found.get("peak_kl"), 1)
        return (
            f"d ({number(found['alpha'])} − {number(found.get('beta'))} log d) ± {number(found.get('error'))}"
            f"{'' if peak == ABSENT else f', highest at {peak} nats'}"
        )

    return form


def _handed_on(run: RunView) -> str:
    taken = known(summary(run, "ppo").get("model_of_iteration"))
    return ABSENT if taken is None else f"iteration {count(taken)}"


def _missing(runs: Sequence[RunView], stage: str) -> list[str]:
    return each(runs, lambda run: sentence(found) if (found := facts.state(run, stage)) else None)


def _shared(runs: Sequence[RunView], stage: str) -> list[str]:
    names = facts.labels(runs)
    groups = [found.runs for found in curves.sources(runs, stage) if len(found.runs) > 1]
    return [f"Shared by {' and '.join(names[index] for index in group)}." for group in groups]


def _unknown_truth(run: RunView) -> str | None:
    if series(run.stages.get("ppo"), "eval/utility") or dig(summary(run, "evaluate"), "utility"):
        return None
    key = "evaluate.utility" if facts.judged_stage(run) == "direct" else "ppo.evaluate.utility"
    return f"The true utility is not known; where it is, name it in the recipe as {key}."
