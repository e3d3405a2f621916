"""Runs of several processes that end early, and go on with as many or others."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from keel.demo import polite
from keel.dist import crew
from keel.dist.launcher import Lost
from keel.dist.world import joined
from tests.dist.crowd import in_processes, start
from tests.dist.test_same_answer import differences, run
from tests.end_to_end.killing import differences as bitwise_differences
from tests.end_to_end.tiny import tiny_recipe

SFT_AND_PPO = [
    "collect=null",
    "reward=null",
    "direct=null",
    "evaluate=null",
    "ppo.reward=[{function: 'keel.demo:polite'}]",
]
LEISURE = "KEEL_TEST_LEISURE"  # seconds that a reward takes
AT_LEISURE = f"ppo.reward=[{{function: '{__name__}:polite_at_leisure'}}]"
PATIENCE = 300.0  # seconds until a test that hangs fails


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_of_two_goes_on_with_any_number(tmp_path: Path, count: int) -> None:
    """With two it ends bitwise as one that was not interrupted, else to rounding."""
    half = tiny_recipe([*SFT_AND_PPO, "ppo.iterations=4", "ppo.update.schedule=constant", "ppo.update.warmup=0"])
    recipe = tiny_recipe([*SFT_AND_PPO, "ppo.update.schedule=constant", "ppo.update.warmup=0"])
    in_processes(2, lambda: run(half, tmp_path / "parts"))
    in_processes(count, lambda: run(recipe, tmp_path / "parts", extend=True))
    in_processes(2, lambda: run(recipe, tmp_path / "whole"))
    if count == 2:
        assert (
            bitwise_differences(tmp_path / "whole" / "ppo" / "checkpoints", tmp_path / "parts" / "ppo" / "checkpoints")
            == []
        )
        assert bitwise_differences(tmp_path / "whole" / "ppo" / "model", tmp_path / "parts" / "ppo" / "model") == []
    assert differences(tmp_path / "whole", tmp_path / "parts", ["sft"]) == []
    assert differences(tmp_path / "whole", tmp_path / "parts", ["ppo"]) == []


def test_twenty_jobs_in_a_row_end_well() -> None:
    def work() -> int:
        with joined(), crew.scope():
            together = crew.shared(lambda: crew.each_its_own(lambda: [object.__name__] * 1000))
            return len(crew.lead(together))

    for _ in range(20):
        assert in_processes(2, work) == [2, 2]


def test_a_process_that_is_lost_at_the_very_end_is_said(tmp_path: Path) -> None:
    def work() -> str:
        try:
            with joined() as here:
                if here.rank == 1:
                    os._exit(0)
        except Lost as error:
            return str(error)
        return ""

    (first, _) = (os.waitpid(child, 0) for child in start(2, work, tmp_path))
    assert os.waitstatus_to_exitcode(first[1]) == 0
    assert pickle.loads((tmp_path / "0").read_bytes()).startswith("process 0 of 2 lost the others")


def polite_at_leisure(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
    """So that whoever looks on has the time to interfere."""
    time.sleep(float(os.environ.get(LEISURE, "0")))
    return polite(prompts, responses, rows)


def leisurely() -> dict[str, str]:
    """The variables of such a process."""
    return {**os.environ, LEISURE: "0.3"}


def processes_of(launcher: int) -> dict[int, int]:
    """The id of each process that a launcher has started, by its rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        ranks = [int(one.removeprefix(b"RANK=")) for one in variables if one.startswith(b"RANK=")]
        if parent == launcher and ranks:
            found[ranks[0]] = int(folder.name)
    return found


def wait_for_line(run: subprocess.Popen[bytes], metrics: Path, number: int, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < number:
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < end, f"{metrics} never had {number} lines"
        time.sleep(0.02)


def test_a_process_that_is_killed_is_named_and_the_run_starts_again(tmp_path: Path) -> None:
    """One restart is allowed: the first kill is mended, the second one told; then the run ends as one left alone."""
    recipe = tiny_recipe([*SFT_AND_PPO, AT_LEISURE, "ppo.iterations=24"])
    file, out = tmp_path / "tiny.json", tmp_path / "killed"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    metrics = out / "ppo" / "metrics.jsonl"
    command = [sys.executable, "-m", "keel", "run", str(file), "--out", str(out), "--processes", "2", "--restarts", "1"]
    errors = tmp_path / "errors.txt"
    with (
        errors.open("w", encoding="utf-8") as file_of_errors,
        subprocess.Popen(command, stderr=file_of_errors, stdout=subprocess.DEVNULL, env=leisurely()) as started,
    ):
        for rank, line in ((1, 3), (0, 12)):
            wait_for_line(started, metrics, line)
            os.kill(processes_of(started.pid)[rank], signal.SIGKILL)
        started.wait(timeout=PATIENCE)
    assert started.returncode == 2
    said = errors.read_text(encoding="utf-8")
    assert said.splitlines()[-1].startswith("keel: process 0 of 2 ended with SIGKILL, after 1 restarts")
    in_processes(2, lambda: run(recipe, out))
    in_processes(2, lambda: run(recipe, tmp_path / "alone"))
    assert bitwise_differences(tmp_path / "alone" / "ppo", out / "ppo") == []


def test_told_to_end_the_processes_finish_their_step(tmp_path: Path) -> None:
    """The launcher is told, and hands it on; what they end with later is what was not interrupted."""
    seldom = ["ppo.checkpoint_every=1000", "ppo.evaluate.every=1000"]
    recipe = tiny_recipe([*SFT_AND_PPO, AT_LEISURE, "ppo.iterations=16", *seldom])
    file, out = tmp_path / "tiny.json", tmp_path / "told"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    metrics = out / "ppo" / "metrics.jsonl"
    command = [sys.executable, "-m", "keel", "run", str(file), "--out", str(out), "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=leisurely()) as started:
        wait_for_line(started, metrics, 4)
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 143
    assert b"death signal" not in said  # torch's words; ours say which step was saved
    assert b"the same command, without --fresh-from, goes on from there" in b" ".join(said.split())
    last = json.loads(metrics.read_bytes().splitlines()[-1])["iteration"]
    assert 3 <= last < 16
    assert (out / "ppo" / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()
    in_processes(2, lambda: run(recipe, out))
    in_processes(2, lambda: run(recipe, tmp_path / "alone"))
    assert bitwise_differences(tmp_path / "alone" / "ppo" / "model", out / "ppo" / "model") == []
