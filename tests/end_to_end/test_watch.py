"""A run that is truly running, as `keel watch` beside it shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import dropwhile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from keel.build import run_recipe
from keel.errors import UserError
from keel.feedback.watch.status import of_run
from keel.runs.metrics import read_lines
from tests.cli.serving import serving
from tests.end_to_end.killing import two_stages
from tests.end_to_end.test_leaving import ENDLESS, start, wait_for
from tests.feedback.watch.support import live
from tests.feedback.watch.test_events import PATIENCE, Stream
from tests.pipeline.support import Heard

ITERATIONS = 10


def news(url: str) -> Iterator[dict[str, Any]]:
    """The run as it is at each event, until it is finished."""
    deadline = time.monotonic() + 3 * PATIENCE
    with closing(Stream(url)) as stream:
        while time.monotonic() < deadline:
            stream.next()
            with urlopen(f"{url}/api/watch/runs", timeout=PATIENCE) as answer:
                found = json.load(answer)
            if found:
                yield found[0]
            if found and found[0]["state"] == "finished":
                return
    pytest.fail("it was never finished")


def at_leisure(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """So that there is something to see of each step."""
    time.sleep(0.4)
    return [float(len(response)) for response in responses]


def test_a_run_is_followed_from_its_first_step_to_its_last(tmp_path: Path) -> None:
    recipe, runs = tmp_path / "recipe.yaml", tmp_path / "runs"
    runs.mkdir()
    slow = two_stages(ITERATIONS, f"ppo.reward=[{{function: '{__name__}:at_leisure'}}]", "sft.epochs=1")
    recipe.write_text(json.dumps(slow.model_dump(mode="json")))
    command = [sys.executable, "-m", "keel", "run", str(recipe), "--out", str(runs / "mine")]
    with serving("watch", str(runs)) as (_, said):
        address = re.search(r"Open (http://\S+)/ in", said)
        assert address, said
        training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            seen = list(news(address[1]))
            output, _ = training.communicate(timeout=PATIENCE)
        finally:
            training.kill()
            training.communicate()
    assert training.returncode == 0, output
    states = [one["state"] for one in seen]
    assert states == sorted(states, key=["waiting", "running", "finished"].index)
    known = list(dropwhile(lambda one: not one["stages"], seen))  # a run is there a moment before its recipe is
    ppo = [one["stages"]["ppo"] for one in known]
    steps = [stage["steps"] for stage in ppo if stage["steps"] is not None]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2, "it was seen only when all was over"
    assert (steps[-1], ppo[-1]["lines"], ppo[-1]["planned"]) == (ITERATIONS, ITERATIONS + 1, ITERATIONS)
    working = [stage for one in seen for stage in one["stages"].values() if stage["state"] == "running"]
    assert any(stage["eta_seconds"] is not None for stage in working)
    assert all(one["ending"] is None for one in seen)


def breaks(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    raise ZeroDivisionError("the reward broke")


@pytest.mark.parametrize("only", [None, "ppo"])
def test_a_run_that_failed_says_why_and_forgets_it_when_it_goes_on(tmp_path: Path, only: str | None) -> None:
    good = two_stages(1)
    if only is not None:
        run_recipe(good, tmp_path, console=Heard(), only="sft")
    bad = two_stages(1, f"ppo.reward=[{{function: '{__name__}:breaks'}}]")
    with pytest.raises(UserError) as error:
        run_recipe(bad, tmp_path, console=Heard(), only=only)
    found = of_run(live(tmp_path))
    assert (found.state, {stage.name: stage.state for stage in found.stages}) == (
        "failed",
        {"sft": "finished", "ppo": "failed"},
    )
    assert found.ending is not None
    assert (found.ending.stage, found.ending.sentence) == ("ppo", str(error.value))
    run_recipe(good, tmp_path, console=Heard(), only=only, fresh_from="ppo")
    found = of_run(live(tmp_path))
    assert (found.state, found.ending) == ("finished", None)


def test_what_was_told_to_end_was_left_and_what_was_killed_is_not(tmp_path: Path) -> None:
    metrics = tmp_path / "ppo" / "metrics.jsonl"
    child = start(two_stages(ENDLESS), tmp_path)
    wait_for(metrics, 3, child)
    running = of_run(live(tmp_path))
    assert (running.state, running.ending) == ("running", None)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    left = of_run(live(tmp_path))
    assert (left.state, left.current is not None and left.current.name) == ("left", "ppo")
    assert left.ending is not None
    assert re.fullmatch(
        r"left after step \d+, as asked; the same command, without --fresh-from, goes on from there\.",
        left.ending.sentence,
    )
    again = start(two_stages(ENDLESS), tmp_path)
    wait_for(metrics, len(read_lines(metrics)) + 1, again)
    os.kill(again, signal.SIGKILL)
    os.waitpid(again, 0)
    assert not (tmp_path / "ended.json").exists()
