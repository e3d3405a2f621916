"""How much of the disk a recipe's run will take: its checkpoints, the one that is being written, and its models."""

from __future__ import annotations

import shutil
from pathlib import Path

from keel.config.recipe import Recipe
from keel.doctor.estimate import CHECKPOINT_BYTES, Load
from keel.doctor.finding import Finding, bad, good
from keel.doctor.loads import Loads
from keel.doctor.machine import nearest_folder
from keel.doctor.memory import TRAINED
from keel.errors import UserError
from keel.models.load import resolve_device
from keel.models.memory import in_words


def check_space(recipe: Recipe, out: Path) -> list[Finding]:
    """Nothing where a model's configuration cannot be read: that is said where the memory is looked at."""
    try:
        loads = Loads(recipe, out, resolve_device(recipe.device))
        needed = {stage: stage_bytes(recipe, stage, loads.of(stage)) for stage in TRAINED if getattr(recipe, stage)}
    except UserError:
        return []
    if not needed:
        return []
    folder = nearest_folder(out)
    free, total = shutil.disk_usage(folder).free, sum(needed.values())
    parts = ", ".join(f"{stage} {in_words(size)}" for stage, size in needed.items())
    said = f"{in_words(total)} ({parts}); {in_words(free)} are free at {folder}"
    if total < free:
        return [good("space for the run", said)]
    return [bad("space for the run", said, "make room; or keep_checkpoints: 1; or model.tune: lora; or another --out")]


def stage_bytes(recipe: Recipe, stage: str, load: Load) -> int:
    """Bytes that one stage has on the disk when it has most."""
    kept: int = getattr(recipe, stage).keep_checkpoints + (stage == "ppo") + 1  # the best; and the one being written
    trained = sum(model.trained for model in load.models)
    written = next(model for model in load.models if model.trained)
    adapter = 4 * trained if written.adapters else 0
    return kept * CHECKPOINT_BYTES * trained + load.precision * written.shape.weights + adapter
