"""What the runs say, an algorithm a row: means and spreads over seeds, and its course of truth against KL."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.compare.plan import Planned
from keel.compare.run import COST
from keel.runs import files
from keel.runs.read import RunView, read_run

Point = tuple[float, float]  # (KL, what is judged by)


@dataclass(frozen=True)
class Row:
    """An algorithm over its seeds: each quantity's mean and population standard deviation; NaN where unknown."""

    algorithm: str
    seeds: int
    quantities: Mapping[str, tuple[float, float]]
    courses: Sequence[Sequence[Point]]  # while it trained, a seed each; or one, of its ends at several leashes
    ends: Sequence[Point]  # a seed each

    @property
    def reach(self) -> float:
        """The KL that every course gets to."""
        return min(max(kl for kl, _ in course) for course in self.courses)

    def at(self, kl: float) -> float:
        """What is judged by where a course first gets to this KL, the mean over courses; NaN where one never does."""
        return statistics.fmean(_crossing(course, kl) for course in self.courses)


def _crossing(course: Sequence[Point], kl: float) -> float:
    """Between two of its points it is linear in the root of the KL."""
    for (low, first), (high, second) in itertools.pairwise(course):
        if low <= kl <= high and high > low:
            share = (math.sqrt(kl) - math.sqrt(low)) / (math.sqrt(high) - math.sqrt(low))
            return first + share * (second - first)
    return math.nan


def gather(runs: Sequence[Planned], out: Path) -> list[Row]:
    """One row an algorithm, in the order they were named; runs that are not finished are left out."""
    views = {run.name: read_run(out / run.name) for run in runs if (out / run.name / COST).exists()}
    rows = []
    for name in dict.fromkeys(run.algorithm for run in runs):
        own = [run for run in runs if run.algorithm == name and run.name in views]
        main = [run for run in own if run.leash == 1]
        if not main:
            continue
        found = [_quantities(views[run.name], out / run.name) for run in main]
        start = (0.0, statistics.fmean(one["reference_truth"] for one in found))
        ends = [(one["kl"], one["truth"]) for one in found]
        courses = [course for run in main if (course := _course(views[run.name]))]
        others = [_end(views[run.name]) for run in own if run.leash != 1]
        if not courses:
            courses = [sorted([start, *others, _mean_point(ends)])]
        quantities = {key: _spread([one[key] for one in found]) for key in found[0]}
        rows.append(Row(name, len(main), quantities, courses, ends))
    return rows


def _summary(view: RunView, stage: str) -> dict[str, Any]:
    found = view.stages.get(stage)
    return (found.summary if found else None) or {}


def _judged(summary: Mapping[str, Any]) -> str:
    """What is judged by: the true utility where it is known, else the score."""
    return "utility" if "utility" in summary else "score"


def _end(view: RunView) -> Point:
    summary = _summary(view, "evaluate")
    return summary["kl"], summary["policy"][_judged(summary)]


def _quantities(view: RunView, folder: Path) -> dict[str, float]:
    summary, cost = _summary(view, "evaluate"), files.read_json(folder / COST) or {}
    judge = _judged(summary)
    trained = next((view.stages[stage] for stage in ("ppo", "direct") if stage in view.stages), None)
    batch = view.recipe.get("ppo") or {}
    lengths = [line.get("objective/length", 0.0) for line in trained.metrics] if trained else []
    return {
        "truth": summary["policy"][judge],
        "reference_truth": summary["reference"][judge],
        "win_rate": summary[judge]["win_rate"],
        "score": summary["policy"]["score"],
        "kl": summary["kl"],
        "length": summary["policy"]["length"],
        "sampled_tokens": sum(lengths) * batch.get("rollout_batch", 0),
        "cpu_seconds": cost.get("cpu_seconds", math.nan),
        "peak_gib": cost.get("peak_gib", math.nan),
    }


def _course(view: RunView) -> list[Point]:
    """(KL, truth) at each held-out evaluation while it trained."""
    stage = view.stages.get("ppo")
    lines = stage.metrics if stage else []
    judge = "eval/utility" if any("eval/utility" in line for line in lines) else "eval/scores"
    return [(max(0.0, line["eval/kl"]), line[judge]) for line in lines if judge in line and "eval/kl" in line]


def _mean_point(points: Sequence[Point]) -> Point:
    return statistics.fmean(kl for kl, _ in points), statistics.fmean(truth for _, truth in points)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.pstdev(values)
