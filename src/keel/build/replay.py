"""`keel debug replay`: a step whose numbers were not finite, again, on the stage's own engines. The run stays as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from keel.build.stages import RUNNERS
from keel.build.workbench import Workbench
from keel.config.recipe import parse_recipe
from keel.dist import crew
from keel.engines.base import Suspect
from keel.engines.faults import Finding
from keel.engines.learner import GradientLearner
from keel.errors import UserError
from keel.inputs import stage_inputs
from keel.microbatches import read_batch
from keel.pipeline.faults import BATCHES, FAULT, LEARNER
from keel.runs import files
from keel.runs.console import SilentConsole
from keel.runs.identity import Identity
from keel.runs.layout import FAULTS, RECIPE
from keel.runs.run import StageRun

T = TypeVar("T")


@dataclass(frozen=True)
class Replayed:
    """One micro-batch of a fault: as a whole, and its smallest parts, each alone."""

    whole: Finding
    parts: tuple[Suspect, ...]


class _Reached(Exception):
    """The engines of the stage are made: this is its learner."""

    def __init__(self, learner: GradientLearner[Any] | None) -> None:
        super().__init__()
        self.learner = learner


class _UntilMade(Workbench):
    """Builds a stage up to where it would be walked."""

    def lead(self, stage: Callable[[], T], learner: GradientLearner[Any] | None = None) -> T:
        raise _Reached(learner)


def replay(snapshot: Path) -> tuple[dict[str, Any], list[Replayed]]:
    """What was written of a fault (fault.json), and the loss again on its micro-batches and each of their rows.

    Raises UserError where `snapshot` is none, or the run no longer makes the engines that it was taken from.
    """
    fault = files.read_json(snapshot / FAULT)
    if fault is None or snapshot.absolute().parent.name != FAULTS:
        raise UserError(f"{snapshot} holds no {FAULT}; name a folder RUN/STAGE/{FAULTS}/step-N")
    run = snapshot.absolute().parents[2]
    learner = _learner(run, str(fault["stage"]))
    learner.read((snapshot / LEARNER).absolute(), fault["steps"])
    found = []
    for number, path in enumerate(sorted((snapshot / BATCHES).iterdir())):
        batch, denominator = read_batch(path), fault["denominator"]
        found.append(
            Replayed(learner.look(batch, denominator), tuple(learner.suspects(batch, number, denominator)))
        )
    return fault, found


def _learner(run: Path, name: str) -> GradientLearner[Any]:
    """That of a stage as the run's recipe makes it; what is written on the way lands beside the run, and is removed."""
    content = files.read_json(run / RECIPE)
    if content is None:
        raise UserError(f"{run} holds no {RECIPE}, so its {name} stage cannot be made again")
    recipe = parse_recipe(content, str(run / RECIPE))
    with tempfile.TemporaryDirectory(prefix="keel-replay-") as folder:
        beside = Path(folder) / name
        beside.mkdir()
        for path in (run / name).iterdir():  # a tokenizer of its own, a cache
            (beside / path.name).symlink_to(path.absolute())
        stage = StageRun(beside, Identity({}, {}), lambda text: None)
        bench = _UntilMade(recipe, stage_inputs(recipe, run, name), stage, SilentConsole())
        with bench.closing, crew.scope():
            try:
                RUNNERS[name](bench)
            except _Reached as reached:
                assert reached.learner is not None, f"the {name} stage trains nothing"
                return reached.learner
    raise AssertionError(f"the {name} stage was walked")
