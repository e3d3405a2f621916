"""A run that is told to end (SIGTERM), or whose disk refuses: nothing of what was done is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.dist.launcher import LEFT
from keel.errors import UserError
from keel.runs import leaving
from keel.runs.console import Console, SilentConsole
from keel.runs.files import read_json
from keel.runs.metrics import read_lines
from keel.runs.progress import KeptProgress
from tests.end_to_end.killing import differences, two_stages
from tests.end_to_end.looping import PATIENCE, until
from tests.pipeline.support import Heard
from tests.runs.support import SFT, opened

ENDLESS = 10**6  # iterations that would never end by themselves


def start(recipe: Recipe, out: Path, console: Console | None = None) -> int:
    """The id of a forked process that runs the recipe as the command does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            with leaving.heeding():
                run_recipe(recipe, out, console=console or Heard())
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return child


def wait_for(metrics: Path, lines: int, child: int, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while len(read_lines(metrics)) < lines:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        assert time.monotonic() < end, f"{metrics} never had {lines} lines"
        time.sleep(0.01)


class Held(Heard):
    """Goes on from that step of a stage when it is told to end, and cannot be over before."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__()
        self.held = (stage, step)

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if (stage, done) == self.held:
            until(leaving.asked)


@pytest.mark.parametrize(("stage", "lines"), [("sft", 4), ("ppo", 3)])
def test_told_to_end_it_finishes_the_step_and_goes_on_from_there(tmp_path: Path, stage: str, lines: int) -> None:
    """Checkpoints were far apart, and the exit code is the documented one."""
    seldom = ["sft.checkpoint_every=1000", "ppo.checkpoint_every=1000", "ppo.evaluate.every=1000", "sft.epochs=8"]
    recipe = two_stages(5, *seldom)
    child = start(recipe, tmp_path / "told", Held(stage, lines))
    wait_for(tmp_path / "told" / stage / "metrics.jsonl", lines, child)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == LEFT == 143
    last = read_lines(tmp_path / "told" / stage / "metrics.jsonl")[-1]["iteration"]
    assert (tmp_path / "told" / stage / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()
    assert not (tmp_path / "told" / stage / "done.json").exists()
    ending = read_json(tmp_path / "told" / "ended.json")
    assert ending is not None
    assert (ending["stage"], ending["how"]) == (stage, "left")
    assert (
        ending["sentence"]
        == f"left after step {last}, as asked; the same command, without --fresh-from, goes on from there."
    )

    console = Heard()
    run_recipe(recipe, tmp_path / "told", console=console)
    assert any(said.startswith(f"{stage}: goes on from step {last} ") for said in console.said)
    run_recipe(recipe, tmp_path / "alone", console=Heard())
    wrong = differences(tmp_path / "alone", tmp_path / "told")
    assert [one for one in wrong if "checkpoints" not in one] == []  # those of the way are others


class Stuck(Heard):
    """A step that does not end, and notes when it has been told to."""

    def __init__(self, told: Path) -> None:
        super().__init__()
        self.told = told

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        while not leaving.asked():
            time.sleep(0.01)
        self.told.touch()
        time.sleep(3600)


def test_told_again_it_ends_at_once(tmp_path: Path) -> None:
    told = tmp_path / "told"
    child = start(two_stages(ENDLESS), tmp_path / "run", Stuck(told))
    wait_for(tmp_path / "run" / "sft" / "metrics.jsonl", 1, child)
    os.kill(child, signal.SIGTERM)
    until(told.exists)  # two signals that nobody has seen yet are one
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it would finish its step
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_in_a_library_signals_are_the_programs_own(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run_recipe(two_stages(1, "ppo=null"), tmp_path, console=Heard())
    assert signal.getsignal(signal.SIGTERM) is before
    with leaving.heeding():
        assert signal.getsignal(signal.SIGTERM) is not before
        assert not leaving.asked()
    assert signal.getsignal(signal.SIGTERM) is before


# --- the disk ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few hundred KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system may be mounted here: " + made.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    recipe, out = two_stages(4), small_disk / "run"
    with pytest.raises(UserError, match=r"^the disk under .*/run is full \(.*No space left on device.*\); free"):
        run_recipe(recipe, out, console=Heard())
    ending = read_json(out / "ended.json")
    assert ending is not None
    assert ending["sentence"].startswith(f"the disk under {out} is full (")
    assert not [
        path for path in out.rglob("*") if ".tmp" in path.name and path.is_dir()
    ]  # nor is room kept for nothing
    resize(small_disk, "size=8m")
    run_recipe(recipe, out, console=Heard())
    run_recipe(recipe, tmp_path / "alone", console=Heard())
    assert differences(tmp_path / "alone", out) == []


def test_a_disk_without_room_for_a_byte_keeps_what_ended_the_run(small_disk: Path) -> None:
    """How far the stage was makes room for it."""
    out = small_disk / "run"

    def fill_and_fail() -> None:
        with opened(out) as run, run.at("sft"):
            stage = run.stage("sft", SFT)
            run.begin(stage)
            KeptProgress(SilentConsole(), stage.path).progress("sft", 1, 2, {})
            with (small_disk / "others").open("wb", buffering=0) as others:
                while others.write(b"x"):
                    pass

    with pytest.raises(UserError, match="is full"):
        fill_and_fail()
    ending = read_json(out / "ended.json")
    assert ending is not None
    assert ending["sentence"].startswith(f"the disk under {out} is full (")
    assert not (out / "sft" / "progress.json").exists()


# --- nothing to do ---


def test_a_run_with_nothing_left_to_do_says_so(tmp_path: Path) -> None:
    recipe = two_stages(1, "ppo=null")
    run_recipe(recipe, tmp_path, console=Heard())
    said = Heard()
    run_recipe(recipe, tmp_path, console=said)
    assert said.said == [
        "sft: finished before, skipped.",
        f"{tmp_path}: nothing was left to do; --fresh-from STAGE makes a stage and all later ones anew.",
    ]


def test_other_versions_are_said(tmp_path: Path) -> None:
    recipe = two_stages(1, "ppo=null")
    run_recipe(recipe, tmp_path, console=Heard())
    note = tmp_path / "run.json"
    note.write_text(note.read_text().replace(torch.__version__, "2.3.4+cpu"))
    said = Heard()
    run_recipe(recipe, tmp_path, console=said)
    assert said.said[0].startswith(f"{tmp_path} was last run under torch 2.3.4+cpu, and this is {torch.__version__}")
