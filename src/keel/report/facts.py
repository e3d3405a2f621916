"""What a run's files say in words: for the page and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keel.report.numbers import ABSENT, count, dig, duration, known, number, percent, percent_interval
from keel.runs.layout import STAGES
from keel.runs.read import RunView


@dataclass(frozen=True)
class Row:
    """One line of the comparison: the reference's value, and one a run."""

    label: str
    reference: str
    values: tuple[str, ...]


def labels(runs: Sequence[RunView]) -> list[str]:
    """A name for each run, told apart by its directory where two have the same."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.name} ({run.path.resolve().name})" for run in runs]


def summary(run: RunView, stage: str) -> dict[str, Any]:
    """What a finished stage reported; empty while there is nothing."""
    view = run.stages.get(stage)
    return (view.summary if view else None) or {}


def judged_stage(run: RunView) -> str:
    """Whose policy the evaluation judges: a stage, or a model from elsewhere by its name."""
    without_ppo = run.recipe.get("direct") is not None and run.recipe.get("ppo") is None
    return str(dig(run.recipe, "evaluate", "policy") or ("direct" if without_ppo else "ppo"))


def state(run: RunView, stage: str) -> str | None:
    """None if the stage is finished, else where it stands, to be made a `words.sentence`."""
    view = run.stages.get(stage)
    if view is None:
        named = not run.recipe or run.recipe.get(stage) is not None
        return f"the {stage} stage has not begun" if named else f"its recipe has no {stage} stage"
    if view.finished:
        return None
    done = view.metrics[-1]["iteration"] if view.metrics else None
    planned = dig(run.recipe, "ppo", "iterations") if stage == "ppo" else None
    if done is None:
        return f"the {stage} stage has begun but logged nothing yet"
    return f"the {stage} stage is not finished: {done:.0f} {f'of {planned} ' if planned else ''}steps so far"


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


def comparison(runs: Sequence[RunView]) -> list[Row]:
    """The numbers of the evaluation and the reward model, one row each; rows that no run knows are left out."""
    return [*evaluation(runs), *reward_model(runs)]


def learned_from(found: dict[str, Any]) -> str:
    """What a reward stage trained on, by its summary: 900 pairs, 300 rankings, …; a dash where it is not known."""
    kinds = ("pairs", "rankings", "ratings", "labels")
    return next((f"{count(found[kind])} {kind}" for kind in kinds if known(found.get(kind)) is not None), ABSENT)


def reward_model(runs: Sequence[RunView]) -> list[Row]:
    """How good each run's reward model is, and beside what."""
    return of_runs(_REWARD_MODEL, [summary(run, "reward") for run in runs])


def of_runs(parts: Sequence[tuple[str, Callable[[Any], str]]], found: Sequence[Any]) -> list[Row]:
    """A row for each (label, form), formed from what was found of each run; rows that no run knows are left out."""
    rows = [Row(label, "", tuple(form(one) for one in found)) for label, form in parts]
    return _filled(rows)


def _filled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if {row.reference, *row.values} - {ABSENT, ""}]


def evaluation(runs: Sequence[RunView]) -> list[Row]:
    """Reference and policies on the evaluation's prompts."""
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
    rows += of_runs(_AGAINST_REFERENCE, evaluated)
    rows += [_beside(label, keys, form, evaluated) for label, keys, form in texts]
    nll = [
        (dig(found, "demonstrations", "reference_nll"), dig(found, "demonstrations", "policy_nll"))
        for found in evaluated
    ]
    rows.append(Row("NLL of demonstrations", _merged(number(r) for r, _ in nll), tuple(number(p) for _, p in nll)))
    return _filled(rows)


def _with_interval(found: Any, *keys: str) -> str:
    rate = dig(found, *keys, "win_rate")
    return f"{percent(rate)} {percent_interval(dig(found, *keys, 'win_rate_interval'))}".strip()


def _kl(found: Any) -> str:
    kl, error = dig(found, "kl"), dig(found, "kl_standard_error")
    most = "≤ " if (known(dig(found, "best_of")) or 1) > 1 else ""  # ties would take something off
    return most + (number(kl) if known(error) is None else f"{number(kl)} ± {number(error)}")


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


def _rate(key: str) -> Callable[[Any], str]:
    return lambda found: f"{percent(dig(found, key), 1)} {percent_interval(dig(found, f'{key}_interval'))}".strip()


_REWARD_MODEL: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("reward model right", _rate("accuracy")),
    ("noise allows", lambda found: percent(dig(found, "noise_ceiling"), 1)),
    ("longer wins", lambda found: percent(dig(found, "longer_wins"), 1)),
    ("level right", _rate("level_accuracy")),
    ("always the commonest level", lambda found: percent(dig(found, "commonest_level"), 1)),
)


def _beside(label: str, keys: tuple[str, ...], form: Callable[[Any], str], evaluated: Sequence[Any]) -> Row:
    reference = _merged(form(dig(found, "reference", *keys)) for found in evaluated)
    return Row(label, reference, tuple(form(dig(found, "policy", *keys)) for found in evaluated))


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
        rows.append(Row(stage, "", tuple("reused" if old else time for old, time in zip(reused, times, strict=True))))
    return _filled(rows)


def online_method(run: RunView) -> str:
    """Which estimator, which loss, and where the leash is, as the recipe names them."""
    update = dig(run.recipe, "ppo", "update") or {}
    if update.get("loss") == "dpo":
        return "online DPO"
    kind, ratio = dig(run.recipe, "ppo", "advantage", "kind"), update.get("ratio", "token")
    loss = "plain gradient" if update.get("loss") == "policy_gradient" else f"clipped ratio of the {_CLIPPED[ratio]}"
    place = ", leash in the loss" if dig(run.recipe, "ppo", "kl", "place") == "loss" else ""
    return f"{kind}, {loss}{place}" if kind else ""


_CLIPPED = {"token": "token", "sequence": "response", "gspo": "response (mean)"}
