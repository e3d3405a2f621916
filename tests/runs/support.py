"""What the tests of a run and of its stages share: two identities, and the shortest way to open and to finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from keel.dist.shards import write_shards
from keel.runs.identity import Identity
from keel.runs.run import Run, StageRun

WEIGHTS = "shard-00001-model-00001-of-00001.safetensors"  # as one process writes them
SFT = Identity({"sft.lr": 1e-4, "sft.epochs": 2}, {"data": "a" * 64})
PPO = Identity({"ppo.lr": 1e-5}, {"policy": "b" * 64})


def other(identity: Identity, **config: Any) -> Identity:
    return Identity(
        {**identity.config, **{key.replace("__", "."): value for key, value in config.items()}}, identity.inputs
    )


@contextmanager
def opened(out: Path, said: list[str] | None = None, **options: Any) -> Iterator[Run]:
    with Run.open(out, "demo", console=(said if said is not None else []).append, **options) as run:
        yield run


def complete(stage: StageRun, summary: Mapping[str, Any] | None = None) -> None:
    stage.begin()
    (stage.work("model") / "weights").write_text(stage.name)
    stage.publish("model")
    stage.finish(summary or {})


def weight_of(value: float) -> Callable[[Path], None]:
    """What writes a tensor of this value into a checkpoint."""
    return lambda folder: write_shards(folder, {"weight": torch.full((3,), value)})


def weight_in(checkpoint: Path) -> list[float]:
    numbers: list[float] = load_file(checkpoint / WEIGHTS)["weight"].tolist()
    return numbers
