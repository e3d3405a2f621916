"""Where a run stands, in the few words and numbers of a line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from keel.feedback.watch.formats import format_number
from keel.feedback.watch.runs import LiveRun
from keel.feedback.watch.stage import LiveStage, number
from keel.instruments.alarms import AFTER
from keel.instruments.concerns import Concern, ended_early, of_evaluations, of_ppo, of_reward, of_training
from keel.instruments.words import known

State = Literal["waiting", "running", "quiet", "failed", "left", "finished", "elsewhere"]

_LEAST_QUIET = 120.0  # seconds without a line before a stage that logs its steps counts as quiet
_SLOW_STEPS = 10  # and at least so many of its slowest recent steps
_QUIET_UNLOGGED = 900.0  # of a stage that has logged no step: it may be loading a model
_RECENT = 50  # steps
_MOST_EVALUATIONS = 200
_UNITS = {
    "collect": "rounds of prompts",
    "people": "pairs judged",
    "reference": "rows read",
    "ppo": "iterations",
    "evaluate": "parts",
}  # else steps
_EVALUATED = "eval/scores"
_HELD_OUT = ("eval/utility", "eval/judge")

# By stage: what its concerns were found in, and the concerns. They are asked for far more often than there is news.
_Found = WeakKeyDictionary[LiveStage, tuple[object, list[Concern]]]
_CURVES: _Found = WeakKeyDictionary()
_ALARMS: _Found = WeakKeyDictionary()

# By stage what its line shows: a label, and the metrics that may say it, or the key of the summary.
_HEADLINES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "sft": (("loss", ("sft/validation/loss", "sft/loss")),),
    "reward": (("accuracy", ("reward/validation/accuracy", "reward/accuracy")),),
    "direct": (("accuracy", ("direct/validation/accuracy", "direct/accuracy")),),
    "ppo": (
        ("score", ("objective/scores", "eval/scores")),
        ("true", ("eval/utility", "eval/judge")),
        ("KL", ("objective/kl", "eval/kl")),
    ),
}
_SUMMARIES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "evaluate": (("score", ("policy", "score")), ("true", ("policy", "utility")), ("KL", ("kl",))),
}


@dataclass(frozen=True)
class StageStatus:
    """A stage on one line. Times are in seconds; what is not known is None."""

    name: str
    state: State
    steps: int | None
    planned: int | None
    unit: str  # of the steps
    eta: float | None
    age: float | None  # since something was written
    numbers: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float | None:
        """Of the planned steps, those that are done."""
        return min(1.0, self.steps / self.planned) if self.planned and self.steps is not None else None


@dataclass(frozen=True)
class Ending:
    """What ended a run early, at which stage, in its own words but for the stage's name."""

    stage: str
    how: Literal["failed", "left"]
    sentence: str


@dataclass(frozen=True)
class RunStatus:
    """A run on one line; `current` is the stage to look at, `numbers` are the last ones, by label."""

    run: LiveRun
    state: State
    stages: tuple[StageStatus, ...]
    current: StageStatus | None
    numbers: dict[str, str]
    warnings: tuple[Concern, ...]
    ending: Ending | None
    age: float | None  # seconds since something was written


def of_run(run: LiveRun) -> RunStatus:
    """Where a run stands."""
    ending = _ending(run)
    stages = tuple(_status(run, name, run.stages.get(name), ending) for name in run.planned)
    age = min((one.age for one in stages if one.age is not None), default=None)
    numbers: dict[str, str] = {}
    for stage in sorted(stages, key=lambda stage: stage.name == "ppo"):  # whose numbers go before the evaluation's
        numbers |= dict(stage.numbers)
    state = ending.how if ending else _state(stages, run.held, age)
    return RunStatus(run, state, stages, _current(stages), numbers, tuple(_warnings(run)), ending, age)


def _ending(run: LiveRun) -> Ending | None:
    """What its directory says of its end, unless a process has taken it up again or all stages are finished."""
    found = run.ended.value or {}
    stage, how, sentence = (found.get(key) for key in ("stage", "how", "sentence"))
    if run.held or how not in ("failed", "left") or stage not in run.planned or not isinstance(sentence, str):
        return None
    there = [run.stages.get(name) for name in run.planned]
    finished = all(one is not None and (one.finished or not one.readable) for one in there)
    return None if finished else Ending(stage, how, sentence.removeprefix(f"{stage}: "))


def _state(stages: Sequence[StageStatus], held: bool, age: float | None) -> State:
    """Between two stages a run counts as running while a process holds it, or something was written not long ago."""
    states = {stage.state for stage in stages} - {"elsewhere"}
    if "running" in states:
        return "running"
    if "quiet" in states:
        return "quiet"
    if states <= {"waiting"}:
        return "waiting"
    if states == {"finished"}:
        return "finished"
    return "running" if held or (age is not None and age < _QUIET_UNLOGGED) else "quiet"


def _current(stages: Sequence[StageStatus]) -> StageStatus | None:
    """The one at work, else the last training stage that has begun, else the first of all."""
    begun = [stage for stage in stages if stage.state not in ("waiting", "elsewhere")]
    working = [stage for stage in begun if stage.state != "finished"]
    trained = [stage for stage in begun if stage.name in _HEADLINES]
    return next((some[-1] for some in (working, trained, begun) if some), stages[0] if stages else None)


def _warnings(run: LiveRun) -> Iterator[Concern]:
    """What the run's own guards have left in its directory, and what the report says of its numbers too."""
    for stage in run.stages.values():
        for fault in stage.faults:
            said = f"A number was not finite in {fault}: faults/{fault} holds what is needed to look closer."
            yield Concern(stage.name, said, grave=True)
        yield from ended_early(stage.name, _summary(stage))
        skipped = stage.last(f"{stage.name}/skipped")
        if skipped:
            left = "1 minibatch was" if skipped == 1 else f"{skipped:,.0f} minibatches were"
            yield Concern(stage.name, f"{left} left out, with numbers that were not finite.", grave=True)
        if stage.name == "ppo":
            yield from _of_curves(run, stage)
            yield from _alarms(run, stage)
        elif stage.finished:
            yield from _of_finished(stage)


def _summary(stage: LiveStage) -> Mapping[str, Any]:
    return stage.done.value or {}


def _status(run: LiveRun, name: str, stage: LiveStage | None, ending: Ending | None) -> StageStatus:
    ended = ending.how if ending is not None and ending.stage == name else None
    if stage is None or not stage.readable:
        state: State = ended or ("waiting" if stage is None else "elsewhere")
        return StageStatus(name, state, None, None, "", None, None, ())
    age = max(0.0, time.time() - stage.changed_at)
    state = "finished" if stage.finished else ended or _at_work(run, stage, age)
    steps, planned, unit = _steps(run, stage)
    eta = _eta(stage, steps, planned, age) if state == "running" else None
    return StageStatus(name, state, steps, planned, unit, eta, age, _numbers(stage))


def _at_work(run: LiveRun, stage: LiveStage, age: float) -> State:
    return "running" if run.held or age <= _patience(stage) else "quiet"


def _steps(run: LiveRun, stage: LiveStage) -> tuple[int | None, int | None, str]:
    """How many are done, how many there will be, and what they are called.

    A stage says so itself while it works; of ppo the recipe does, which knows before and after.
    """
    line = stage.progress.value or {}
    of, done, total = line.get("of"), number(line.get("done")), number(line.get("total"))
    steps = stage.iteration if math.isfinite(stage.iteration) else None
    if stage.name == "ppo":
        total = run.numeric("ppo", "iterations")
    elif of is not None and (of != stage.name or steps is None):
        steps = done
    unit = _UNITS.get(stage.name if of is None else str(of), "steps")
    return _count(steps), _count(total) or None, unit


def _count(value: float | None) -> int | None:
    return int(value) if value is not None and 0 <= value < 1e15 else None


def _eta(stage: LiveStage, steps: int | None, planned: int | None, age: float) -> float | None:
    """By what its last steps took; of a stage that times none, by what it says itself."""
    durations = _durations(stage)
    if durations and planned and steps is not None:
        return max(0.0, planned - steps) * sum(durations) / len(durations)
    left = number((stage.progress.value or {}).get("seconds_left"))
    return left - age if left is not None and age < left < 1e15 else None


def _numbers(stage: LiveStage) -> tuple[tuple[str, str], ...]:
    found = [(label, stage.last(*keys)) for label, keys in _HEADLINES.get(stage.name, ())]
    found += [(label, _dig(stage.done.value, keys)) for label, keys in _SUMMARIES.get(stage.name, ())]
    numbers = tuple(
        (label, format_number(value)) for label, value in found if value is not None and math.isfinite(value)
    )
    return (*numbers, ("pairs", f"{stage.num_samples:,}")) if stage.name == "collect" else numbers


def _dig(value: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return number(value)


def _patience(stage: LiveStage) -> float:
    """Seconds without a sign of life after which a stage counts as quiet."""
    durations = _durations(stage)
    return max(_LEAST_QUIET, _SLOW_STEPS * max(durations)) if durations else _QUIET_UNLOGGED


def _durations(stage: LiveStage) -> list[float]:
    """What the last steps took, each with the evaluation or validation that came with it."""
    found: dict[float, float] = {}
    for key, curve in stage.curves.items():
        if key.startswith("time/") and key.endswith("_seconds"):
            for x, y in zip(curve.xs[-_RECENT:], curve.ys[-_RECENT:], strict=True):
                if 0 <= y < math.inf:
                    found[x] = found.get(x, 0.0) + y
    return [found[x] for x in sorted(found)[-_RECENT:]]


def _of_finished(stage: LiveStage) -> Iterator[Concern]:
    if stage.name == "reward":
        yield from of_reward(_summary(stage))
    yield from _found(_CURVES, stage, stage.num_rows, lambda: of_training(stage.name, stage.curves))


def _of_curves(run: LiveRun, ppo: LiveStage) -> list[Concern]:
    limits = {key: run.numeric("ppo", "kl", key) for key in ("budget", "target")}
    spent, since, progress = _spent_kl(run, ppo), _measured_since(ppo), _progress(run, ppo)
    about = ppo.num_rows, spent, since, progress, tuple(limits.values())
    return _found(
        _CURVES,
        ppo,
        about,
        lambda: of_ppo(ppo.curves, progress=progress, spent=spent, limits=limits, since=since),
    )


def _found(cache: _Found, stage: LiveStage, about: object, look: Callable[[], Iterator[Concern]]) -> list[Concern]:
    """What looking gives, looked for again only where the stage was read anew or what it is `about` has changed."""
    key = stage.generation, about
    if key != cache.get(stage, (None, []))[0]:
        cache[stage] = key, list(look())
    return cache[stage][1]


def _spent_kl(run: LiveRun, ppo: LiveStage) -> float | None:
    """Nats a response: the evaluation's, else the last on held-out prompts, else the last rollout's."""
    evaluate = run.stages.get("evaluate")
    measured = known(number(_summary(evaluate).get("kl"))) if evaluate is not None else None
    return measured if measured is not None else ppo.last("eval/kl", "objective/kl")


def _progress(run: LiveRun, ppo: LiveStage) -> float:
    planned = run.numeric("ppo", "iterations")
    return 1.0 if ppo.finished or not planned else max(0.0, ppo.iteration) / planned


def _measured_since(ppo: LiveStage) -> int | None:
    since = known(number((ppo.fork.value or {}).get("measured_since")))
    return None if since is None else int(since)


def _alarms(run: LiveRun, ppo: LiveStage) -> list[Concern]:
    found = run.numeric("ppo", "evaluate", "alarm_after")
    after = int(found) if found is not None and 1 <= found < _MOST_EVALUATIONS else AFTER
    since, taken = _measured_since(ppo), known(number(_summary(ppo).get("model_of_iteration")))
    evaluated = ppo.curves.get(_EVALUATED)
    about = len(evaluated.xs) if evaluated else 0, after, since, taken
    return _found(_ALARMS, ppo, about, lambda: of_evaluations(_evaluations(ppo), after=after, since=since, taken=taken))


def _evaluations(ppo: LiveStage) -> list[dict[str, float | None]]:
    """What the alarms go by: where there are very many evaluations the start, the last, and the peaks these name."""
    curves = {key: curve for key, curve in ppo.curves.items() if key.startswith("eval/")}
    if _EVALUATED not in curves:
        return []
    times = curves[_EVALUATED].xs
    kept = {times[0], *times[-_MOST_EVALUATIONS:]}
    for peak in (curves.get(f"{key}/peak") for key in _HELD_OUT):
        kept |= set(peak.ys[-_MOST_EVALUATIONS:]) & set(times) if peak else set()
    return [{"iteration": x, **{key: curve.at(x) for key, curve in curves.items()}} for x in sorted(kept)]
