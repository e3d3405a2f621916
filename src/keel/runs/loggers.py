"""Loggers that a recipe names: `loggers: [tensorboard, wandb]`. metrics.jsonl is written with or without them."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keel.errors import UserError
from keel.runs import files
from keel.runs.callbacks import Callback, Guarded, StageInfo

_WANDB_ID = "wandb.json"


def make_loggers(names: Sequence[str], warn: Callable[[str], None]) -> list[Callback]:
    """The named loggers, each dropped with one sentence should it fail. Raises UserError where a package is missing."""
    kinds: Mapping[str, Callable[[], Callback]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
    return [Guarded(name, kinds[name](), fatal=False, warn=warn) for name in names]


class TensorBoardLogger(Callback):
    """Event files in `STAGE/tensorboard`; lines that an interruption has undone are purged."""

    def __init__(self) -> None:
        self._kind = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None
        self._first = 0  # step from which on this process writes

    def on_begin(self, stage: StageInfo) -> None:
        self._first = 0

    def on_resume(self, stage: StageInfo, step: int) -> None:
        self._first = step + 1

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._kind(log_dir=str(stage.path / "tensorboard"), purge_step=self._first)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class WandbLogger(Callback):
    """One W&B run a stage, grouped by the run's name; an interrupted stage goes on under its id.

    W&B ignores the lines of a step that it has; Keel gives them again with the same numbers. `WANDB_MODE=offline`
    and `WANDB_PROJECT` work as everywhere.
    """

    def __init__(self) -> None:
        self._wandb = _imported("wandb", "wandb")
        self._run: Any = None

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "keel"),
                group=stage.run,
                name=f"{stage.run}/{stage.name}",
                id=_kept_id(stage),
                resume="allow",
                dir=str(stage.path),
                config=dict(stage.config),
            )
        self._run.log(dict(metrics), step=step)

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update({key: value for key, value in summary.items() if isinstance(value, int | float)})
        self.close()

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = None


def _kept_id(stage: StageInfo) -> str:
    """The stage's id at W&B, in its directory: a stage that is made anew gets another."""
    known = files.read_json(stage.path / _WANDB_ID)
    if known is None:
        known = {"id": uuid.uuid4().hex}
        files.write_json(stage.path / _WANDB_ID, known)
    return str(known["id"])


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"loggers: {extra} needs a package that is not installed ({error}); "
            f"pip install 'keel-rlhf[{extra}]', or take it out of the recipe's loggers"
        ) from error
