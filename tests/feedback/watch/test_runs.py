from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from keel.errors import UserError
from keel.feedback.refused import Refused
from keel.feedback.watch import roots
from keel.feedback.watch import runs as module
from keel.feedback.watch.runs import Runs
from tests.feedback.watch.support import begin_run, begin_stage, log


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is a look."""
    monkeypatch.setattr(module, "_EVERY", 0.0)
    monkeypatch.setattr(module, "_SELDOM", 0.0)


def names(runs: Runs) -> dict[str, str]:
    with runs.seen() as found:
        return {name: run.label for name, run in found.items()}


def test_runs_are_found_at_and_below_what_was_named(tmp_path: Path) -> None:
    for name in ("runs/a", "runs/deep/b", "elsewhere/a", "runs/.hidden/c", "runs/a/inner"):
        begin_run(tmp_path / name)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    found = names(Runs([tmp_path / "runs", tmp_path / "elsewhere" / "a", tmp_path / "runs" / "a"]))
    assert found == {"runs-a": "runs/a", "runs-deep-b": "runs/deep/b", "a": "a"}


def test_runs_come_and_go_and_keep_their_names(tmp_path: Path) -> None:
    for name in ("a b", "a?b"):
        begin_run(tmp_path / "r" / name)
    runs = Runs([tmp_path / "r"])
    assert names(runs) == {"r-a-b": "r/a b", "r-a-b-2": "r/a?b"}
    before = runs.version
    shutil.rmtree(tmp_path / "r" / "a b")
    assert names(runs) == {"r-a-b-2": "r/a?b"}
    assert runs.version > before
    begin_run(tmp_path / "r" / "a b")
    begin_run(tmp_path / "r" / "a-b")
    assert names(runs) == {"r-a-b": "r/a b", "r-a-b-2": "r/a?b", "r-a-b-3": "r/a-b"}
    shutil.rmtree(tmp_path / "r")
    assert names(runs) == {}


def test_a_name_is_looked_up_and_never_a_path(tmp_path: Path) -> None:
    begin_run(tmp_path / "runs" / "a")
    begin_run(tmp_path / "other")
    runs = Runs([tmp_path / "runs"])
    for name in ("../other", "runs/a", str(tmp_path / "other"), "..", "", "runs-a/../../other", "runs-a\x00"):
        with pytest.raises(Refused, match="There is no run of that name"), runs.one(name):
            pass
    with runs.one("runs-a") as run:
        assert run.path == tmp_path / "runs" / "a"


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing is no directory"):
        Runs([tmp_path / "missing"])


def test_the_version_tells_which_runs_have_news(tmp_path: Path) -> None:
    stages = [begin_stage(begin_run(tmp_path / "r" / name)) for name in ("a", "b")]
    runs = Runs([tmp_path / "r"])
    names(runs)
    before = runs.version
    names(runs)
    assert runs.version == before
    log(stages[1], [1])
    with runs.seen() as found:
        assert {name: run.version > before for name, run in found.items()} == {"r-a": False, "r-b": True}
    assert runs.version_at(runs.cursor) == runs.version
    for other in ("", "another-7", runs.cursor.replace("-", "-x"), f"{runs.cursor}9999999999999999"):
        assert runs.version_at(other) == 0


def test_what_grows_is_looked_at_once_a_second_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY", 1.0)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stage = begin_stage(begin_run(tmp_path / "a"))
    runs = Runs([tmp_path / "a"])
    names(runs)
    log(stage, [1])
    with runs.one("a") as run:
        assert run.stages["ppo"].num_rows == 0
    now = 101.5
    with runs.one("a") as run:
        assert run.stages["ppo"].num_rows == 1


def test_many_runs_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 100.0)
    monkeypatch.setattr(module, "_READING", 0.0)
    for number in range(5):
        log(begin_stage(begin_run(tmp_path / "r" / str(number))), [1])
    runs = Runs([tmp_path / "r"])

    def read() -> int:
        with runs.seen() as found:
            return sum("ppo" in run.stages for run in found.values())

    assert read() == 1
    with runs.one("r-4") as run:  # for whoever asks for it, the last is read at once, beside the next
        assert "ppo" in run.stages
    assert runs.behind
    assert [read(), read(), read()] == [4, 5, 5]
    assert not runs.behind


def test_a_search_ends_however_many_folders_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "_MOST_FOLDERS", 10)
    for number in range(30):
        begin_run(tmp_path / "r" / f"{number:02}")
    begin_run(tmp_path / "r" / "a" / "b" / "c" / "too-deep")
    assert list(names(Runs([tmp_path / "r"])).values()) == [f"r/{number:02}" for number in range(9)]
    monkeypatch.setattr(roots, "_MOST_FOLDERS", 100)
    assert len(names(Runs([tmp_path / "r"]))) == 30


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b"null", b'{"name": 7}'])
def test_a_run_that_is_half_there_is_a_run(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "run.json").write_bytes(content)
    (path / "recipe.json").write_bytes(content)
    (path / "ppo").mkdir()
    with Runs([path]).one("a") as run:
        assert run.name == "a"
        assert run.planned == ["ppo"]
        assert run.troubles == ([] if content.startswith(b'{"') else ["run.json", "recipe.json"])
