"""A checkpoint is whole or is not taken for one, whatever moment the process dies at."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from keel.dist.shards import write_shards
from keel.runs import checkpoint, files
from tests.runs.support import WEIGHTS

STATE = {"beta": 0.1 + 0.2, "tiny": 5e-324, "seen": 12345678901234567890, "names": ["é", None, True], "empty": {}}


def save(folder: Path, step: int, content: float | None = None) -> Path:
    value = float(step) if content is None else content
    return checkpoint.save(
        folder, step, {"at": step}, lambda place: write_shards(place, {"w": torch.full((50,), value)})
    )


def content_at(path: Path) -> set[float]:
    return set(load_file(checkpoint.load(path).path / WEIGHTS)["w"].tolist())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def silent(sentence: str) -> None:
    raise AssertionError(f"unexpected: {sentence}")


# --- what comes back ---


def test_state_and_files_come_back_exactly(tmp_path: Path) -> None:
    content = bytes(range(256))

    def write(place: Path) -> None:
        (place / "a").write_bytes(content)

    path = checkpoint.save(tmp_path / "deep" / "checkpoints", 42, STATE, write)
    snapshot = checkpoint.load(path)
    assert (snapshot.step, snapshot.path, snapshot.state) == (42, path, STATE)
    assert (snapshot.path / "a").read_bytes() == content
    assert names(checkpoint.save(tmp_path, 1, {})) == {"state.json", "manifest.json"}


def test_manifest_lists_size_and_hash_of_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert listed.keys() == {WEIGHTS, "state.json"}
    for name, entry in listed.items():
        content = (path / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert names(tmp_path) == {"step-00000003"}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"a": {"b": float("nan")}}, "state.a.b is nan, which JSON cannot hold"),
        ({"a": [0.0, float("-inf")]}, "state.a.1 is -inf, which JSON cannot hold"),
        ({"a": (1, 2)}, "state.a is of type tuple, which JSON would not give back"),
        ({"a": {3: 1}}, "state.a has the key 3, which is not a string"),
        ({"a": torch.tensor(1)}, "state.a is of type Tensor"),
    ],
)
def test_state_that_would_not_come_back_is_refused(tmp_path: Path, state: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        checkpoint.save(tmp_path, 1, state)
    assert not names(tmp_path)


def test_negative_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step -1 is negative"):
        save(tmp_path, -1)


# --- damage ---


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", cut, "manifest.json is damaged"),
        ("manifest.json", lambda path: path.write_text("[]"), "manifest.json is damaged"),
        ("manifest.json", lambda path: path.write_text('{"files": {}}'), "manifest.json does not list state.json"),
        ("state.json", Path.unlink, "state.json is missing"),
        ("state.json", flip, "state.json is not what was written: its SHA-256 differs"),
        (WEIGHTS, cut, rf"{WEIGHTS} has \d+ bytes instead of \d+"),
        (WEIGHTS, flip, f"{WEIGHTS} is not what was written: its SHA-256 differs"),
    ],
)
def test_damaged_checkpoint_is_skipped_with_a_sentence(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], problem: str
) -> None:
    save(tmp_path, 1)
    good, bad = save(tmp_path, 2), save(tmp_path, 3)
    assert checkpoint.latest(tmp_path, silent) == bad
    damage(bad / name)
    said: list[str] = []
    assert checkpoint.latest(tmp_path, said.append) == good
    assert len(said) == 1
    where = re.escape(str(tmp_path))
    sentence = rf"Checkpoint step-00000003 in {where} is not whole \({problem}\); step-00000002 is used instead\."
    assert re.fullmatch(sentence, said[0])
    with pytest.raises(ValueError, match=problem):
        checkpoint.load(bad)


def test_nothing_whole_left(tmp_path: Path) -> None:
    cut(save(tmp_path, 1) / "state.json")
    cut(save(tmp_path, 2) / "state.json")
    said: list[str] = []
    assert checkpoint.latest(tmp_path, said.append) is None
    assert [sentence.split()[1] for sentence in said] == ["step-00000002", "step-00000001"]
    assert all(sentence.endswith("no whole one is left to use instead.") for sentence in said)


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none", silent) is None


def test_going_on_from_before_a_damaged_one_replaces_its_line(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "step-00000003" / "state.json")
    save(tmp_path, 2)
    checkpoint.prune(tmp_path, keep_last=1)
    assert names(tmp_path) == {"step-00000002"}
    assert checkpoint.latest(tmp_path, silent) == tmp_path / "step-00000002"


# --- keeping ---


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (5, 9, 10, 99, 100):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, keep=(9, 77))
    assert names(tmp_path) == {"step-00000009", "step-00000099", "step-00000100"}
    with pytest.raises(ValueError, match="keep_last is 0"):
        checkpoint.prune(tmp_path, keep_last=0)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999)
    later = save(tmp_path, 100_000_000)
    assert checkpoint.latest(tmp_path, silent) == later


# --- leftovers ---


def test_leftovers_of_dead_processes_are_removed_on_the_next_save(tmp_path: Path) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()
    alive = os.getppid()
    for name in (f"step-00000004.tmp-{dead.pid}", f"step-00000004.tmp-{os.getpid()}", "step-00000001.gone"):
        (tmp_path / f".{name}").mkdir()
    (tmp_path / f".step-00000004.tmp-{alive}").mkdir()
    save(tmp_path, 4)
    assert names(tmp_path) == {"step-00000004", f".step-00000004.tmp-{alive}"}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in `save` may clean up after it."""


@pytest.mark.parametrize("replacing", [False, True])
def test_death_at_every_system_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    """Dies before each flush, rename and removal in turn; the old content or the new one is there, and nothing less."""
    new_step = 1 if replacing else 2
    died_at: list[str] = []
    while len(died_at) < 100:
        folder = tmp_path / str(len(died_at))
        save(folder, 1, content=1.0)
        with monkeypatch.context() as patch:
            _die_after(len(died_at), patch, died_at)
            try:
                save(folder, new_step, content=2.0)
                break
            except Killed:
                pass
        found = checkpoint.latest(folder, silent)
        assert found is not None
        assert (checkpoint.load(found).step, content_at(found)) in ((1, {1.0}), (new_step, {2.0}))
        save(folder, new_step, content=3.0)
        assert names(folder) == {"step-00000001", f"step-{new_step:08d}"}
        assert content_at(folder / f"step-{new_step:08d}") == {3.0}
    assert died_at.count("replace") == (3 if replacing else 1)
    assert died_at.count("rmtree") == (2 if replacing else 0)
    assert died_at.count("fsync") >= 5


def _die_after(calls: int, patch: pytest.MonkeyPatch, died_at: list[str]) -> None:
    left = calls

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                died_at.append(name)
                raise Killed
            left -= 1
            return real(*arguments, **options)

        patch.setattr(owner, name, call)

    counted(os, "fsync")
    counted(os, "replace")
    counted(shutil, "rmtree")


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: events.append(f"sync {path.name}"))
    replace = os.replace

    def renamed(source: Path, target: Path) -> None:
        events.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1)
    beside = f"sync .step-00000001.tmp-{os.getpid()}"
    assert set(events[:3]) == {f"sync {WEIGHTS}", "sync state.json", "sync manifest.json"}
    assert events[3:] == [beside, "rename step-00000001", f"sync {tmp_path.name}"]


# --- a real SIGKILL ---


def content_of(step: int) -> dict[str, Tensor]:
    return {name: torch.full((64, 1024), float(step)) for name in ("model", "exp_avg", "exp_avg_sq")}


def save_for_ever(folder: Path, start: int) -> None:
    for step in range(start, start + 1_000_000):
        checkpoint.save(folder, step, {"step": step}, partial(write_shards, tensors=content_of(step)))
        checkpoint.prune(folder, keep_last=2)


def test_sigkill_at_random_moments_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # torch is imported once, in a process of one thread
    context.set_forkserver_preload([__name__])
    moments = random.Random(0)
    last = 0
    for _ in range(10):
        child = context.Process(target=save_for_ever, args=(tmp_path, last + 1))
        child.start()
        deadline = time.monotonic() + 300
        while _newest(tmp_path) <= last and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        child.kill()
        child.join()
        path = checkpoint.latest(tmp_path, silent)
        assert path is not None
        snapshot = checkpoint.load(path)
        assert snapshot.step > last
        assert snapshot.state == {"step": snapshot.step}
        saved = load_file(snapshot.path / WEIGHTS)
        assert all(torch.equal(saved[name], tensor) for name, tensor in content_of(snapshot.step).items())
        last = snapshot.step
    save_and_look = names(save(tmp_path, last + 1).parent)
    assert all(name.startswith("step-") for name in save_and_look)


def _newest(folder: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-????????")]
    return max(steps, default=0)
