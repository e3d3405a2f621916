"""Reading a run, also one that is still going: for the report and the watcher. Writes nothing, needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.errors import UserError
from keel.runs import files
from keel.runs.identity import Identity
from keel.runs.layout import DONE, IDENTITY, METRICS, RECIPE, RUN, SAMPLES, STAGES
from keel.runs.metrics import read_lines


@dataclass(frozen=True)
class StageView:
    """A stage as it lies on disk. A metric that was not finite is NaN; `identity` and `summary` may still be None."""

    name: str
    path: Path
    finished: bool
    identity: Identity | None
    summary: dict[str, Any] | None
    metrics: list[dict[str, float]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class RunView:
    """A run as it lies on disk; `starts` (time, versions, cores) one a start, `stages` in the order of the pipeline."""

    name: str
    path: Path
    starts: list[dict[str, Any]]
    recipe: dict[str, Any]
    stages: dict[str, StageView]


def read_run(path: Path) -> RunView:
    """Read the run in `path`. Raises UserError if there is none."""
    about = files.read_json(path / RUN)
    if about is None:
        raise UserError(f"{path} holds no run ({RUN} is missing); name the directory that `keel run` made.")
    if not isinstance(about.get("name"), str) or not isinstance(about.get("starts"), list):
        raise UserError(f"{path / RUN} is not what `keel run` wrote; restore it, or name another run.")
    return RunView(
        name=about["name"],
        path=path,
        starts=about["starts"],
        recipe=files.read_json(path / RECIPE) or {},
        stages={name: _read_stage(path / name) for name in STAGES if (path / name).is_dir()},
    )


def _numbered(path: Path) -> list[dict[str, Any]]:
    """The lines that a run wrote: each says of which iteration it is."""
    return [row for row in read_lines(path) if "iteration" in row]


def _read_stage(path: Path) -> StageView:
    identity = files.read_json(path / IDENTITY)
    summary = files.read_json(path / DONE)
    return StageView(
        name=path.name,
        path=path,
        finished=summary is not None,
        identity=None if identity is None else Identity.from_dict(identity),
        summary=summary,
        metrics=[_numbers(row) for row in _numbered(path / METRICS)],
        samples=_numbered(path / SAMPLES),
    )


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in row.items()}
