"""Runs as they grow, written by what writes them in training."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from keel.feedback.watch.app import make_watch_app
from keel.feedback.watch.runs import LiveRun, Runs
from keel.runs.files import write_json
from keel.runs.metrics import MetricsLog, SamplesLog
from keel.serve.launch import is_loopback

AT_LEISURE = 1e12  # a deadline that no reading meets


def begin_run(path: Path, recipe: Mapping[str, Any] | None = None, name: str = "polite") -> Path:
    """A run that has begun nothing yet; unless told otherwise it means to do ppo, 100 iterations of it."""
    path.mkdir(parents=True)
    write_json(path / "run.json", {"name": name, "starts": [{"started": "2030-01-02T03:04:05+00:00"}]})
    write_json(path / "recipe.json", recipe or {"name": name, "ppo": {"iterations": 100}})
    return path


def begin_stage(run: Path, name: str = "ppo") -> Path:
    path = run / name
    path.mkdir()
    write_json(path / "identity.json", {"config": {}, "inputs": {}})
    return path


def log(stage: Path, iterations: Iterable[int], **values: float) -> None:
    """Lines of metrics with these values; score and KL unless told otherwise."""
    for iteration in iterations:
        MetricsLog(stage / "metrics.jsonl").append(
            iteration, values or {"objective/scores": iteration / 10, "objective/kl": iteration / 100}
        )


def say(stage: Path, iteration: int, *rows: Mapping[str, Any]) -> None:
    """Samples."""
    SamplesLog(stage / "samples.jsonl").append(iteration, rows)


def age(path: Path, seconds: float) -> None:
    """Make a directory and all in it look as if last written so long ago."""
    then = time.time() - seconds
    for file in (path, *path.rglob("*")):
        os.utime(file, (then, then))


def live(path: Path) -> LiveRun:
    """The run at a path, read to its end."""
    with Runs([path]).seen() as found:
        (run,) = found.values()
        return run


def app_of(*named: Path, **options: Any) -> FastAPI:
    return make_watch_app(named, is_local=is_loopback, ending=asyncio.Event(), **options)


def client_of(*named: Path, host: str = "localhost", **options: Any) -> TestClient:
    return TestClient(app_of(*named, **options), base_url=f"http://{host}", raise_server_exceptions=True)


def lines(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines holds, read at once."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
