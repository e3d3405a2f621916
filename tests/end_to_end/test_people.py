"""A run whose comparisons come from people: killed, told to end or in two processes, it asks once and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import func, select

from keel.annotate.app import PeopleInApp
from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.dist import world
from keel.dist.launcher import LEFT
from keel.feedback.database import Database
from keel.feedback.judgements import standing
from keel.feedback.projects import find_project
from keel.feedback.tables import Task
from keel.feedback.tasks import progress
from keel.inputs import hash_model
from keel.pipeline import people
from keel.runs.console import SilentConsole
from keel.runs.metrics import read_lines
from keel.schema import CHOSEN_FIRST
from tests.end_to_end.killing import differences, run_in_child
from tests.end_to_end.looping import PATIENCE, until
from tests.end_to_end.test_leaving import start
from tests.end_to_end.tiny import tiny_recipe
from tests.feedback.judging import annotator, judge_all

PROMPTS = 20
COMPARISONS = Path("collect", "comparisons", "comparisons.jsonl")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was supervised a little."""
    out = tmp_path_factory.mktemp("policy")
    run_recipe(recipe_of("sft.epochs=1", "collect=null"), out, console=SilentConsole())
    return out / "sft" / "model"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "_POLL_SECONDS", 0.05)


def recipe_of(*overrides: str) -> Recipe:
    without = [f"{stage}=null" for stage in ("reward", "direct", "ppo", "evaluate")]
    return tiny_recipe([*without, f"collect.prompts.limit={PROMPTS}", *overrides])


def asking(policy: Path, database: Path, *overrides: str) -> Recipe:
    """Collects from people, and does nothing else."""
    who = f"collect.annotator={{people: {{project: talk, database: '{database}'}}}}"
    return recipe_of("sft=null", f"model={{base: '{policy}'}}", who, *overrides)


def asked(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count(Task.id))) or 0


def ended(child: int, seconds: float = PATIENCE) -> int:
    """Its exit code; one that waits for ever is ended."""
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    timer.cancel()
    return code


@pytest.fixture(scope="module")
def alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, and one person judged."""
    folder = tmp_path_factory.mktemp("alone")
    child = start(asking(policy, folder / "feedback.db"), folder / "run")
    judged_by_ann(folder / "feedback.db")
    assert ended(child) == 0
    return folder / "run"


def judged_by_ann(path: Path, most: int = 10**6) -> None:
    database = Database(path)
    until(lambda: asked(database) > 0)
    judge_all(database, "talk", annotator(database, "ann"), most=most)
    database.close()


def said_in(out: Path) -> list[dict[str, Any]]:
    """Line by line; but which response stood first is drawn for each person anew."""
    rows = read_lines(out / COMPARISONS)
    assert all(row.pop(CHOSEN_FIRST) in (True, False) for row in rows)
    return rows


def same(alone: Path, out: Path) -> None:
    assert said_in(out) == said_in(alone)
    assert set(differences(alone / "collect", out / "collect")) <= {"comparisons/comparisons.jsonl"}


def test_what_people_say_is_what_is_written(alone: Path, policy: Path) -> None:
    rows = read_lines(alone / COMPARISONS)
    assert rows
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert {(row["annotator"], row["round"], row["duration"]) for row in rows} == {("ann", 1, 2.5)}
    assert {row["policy_version"] for row in rows} == {hash_model(str(policy))}


@pytest.mark.parametrize("committed", [False, True])
def test_killed_while_it_publishes_it_asks_once(policy: Path, alone: Path, tmp_path: Path, committed: bool) -> None:
    recipe, out = asking(policy, tmp_path / "feedback.db"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        real = PeopleInApp.publish

        def publish(*arguments: object) -> int:
            if committed:
                real(*arguments)  # type: ignore[arg-type]  # passed through
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        patch.setattr(PeopleInApp, "publish", publish)
        assert ended(start(recipe, out)) == -signal.SIGKILL
    database = Database(tmp_path / "feedback.db")
    pairs = len(read_lines(out / "collect" / "samples.jsonl"))
    assert asked(database) == (pairs if committed else 0)
    child = start(recipe, out)
    judged_by_ann(tmp_path / "feedback.db")
    assert ended(child) == 0
    assert asked(database) == pairs
    same(alone, out)


def test_killed_while_it_waits_it_loses_no_judgement(policy: Path, alone: Path, tmp_path: Path) -> None:
    recipe, out = asking(policy, tmp_path / "feedback.db"), tmp_path / "run"
    child = start(recipe, out)
    judged_by_ann(tmp_path / "feedback.db", most=3)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    database = Database(tmp_path / "feedback.db")
    with database.reading() as session:
        assert len(standing(session, find_project(session, "talk"))) == 3
    judge_all(database, "talk", 1, most=4)  # people go on while no run is there
    child = start(recipe, out)
    judge_all(database, "talk", 1)
    assert ended(child) == 0
    same(alone, out)


def test_told_to_end_while_it_waits_it_goes_on_waiting(policy: Path, alone: Path, tmp_path: Path) -> None:
    recipe, out = asking(policy, tmp_path / "feedback.db"), tmp_path / "run"
    child = start(recipe, out)
    judged_by_ann(tmp_path / "feedback.db", most=2)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == LEFT == 143
    database = Database(tmp_path / "feedback.db")
    before = asked(database)
    child = start(recipe, out)
    judge_all(database, "talk", 1)
    assert ended(child) == 0
    assert asked(database) == before
    same(alone, out)


def test_another_start_finds_what_was_said(policy: Path, alone: Path, tmp_path: Path) -> None:
    """The same questions are the same tasks: a run that was deleted asks nobody again."""
    path = alone.parent / "feedback.db"
    before = Database(path)
    count = asked(before)
    run_recipe(asking(policy, path), tmp_path / "anew", console=SilentConsole())
    assert asked(before) == count
    same(alone, tmp_path / "anew")


def test_other_processes_wait_as_long_as_people_take(policy: Path, tmp_path: Path) -> None:
    """Longer than a process waits for a word of another."""
    recipe, out = asking(policy, tmp_path / "feedback.db"), tmp_path / "run"
    patience = 5.0
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        world._TIMEOUT = timedelta(seconds=patience)
        os._exit(0 if run_in_child(recipe, out, processes=2) else 1)
    database = Database(tmp_path / "feedback.db")
    until(lambda: asked(database) > 0)
    time.sleep(1.5 * patience)
    judge_all(database, "talk", annotator(database, "ann"))
    assert ended(child) == 0
    with database.reading() as session:
        found = progress(session, find_project(session, "talk"))
    assert found.tasks == found.complete


def test_who_does_not_wait_leaves_with_all_processes(policy: Path, tmp_path: Path) -> None:
    """With the exit code of one process, and is not started again for it."""
    recipe = asking(policy, tmp_path / "feedback.db", "collect.annotator.people.wait=false")
    file, out = tmp_path / "asking.json", tmp_path / "run"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    command = [sys.executable, "-m", "keel", "run", str(file), "--out", str(out), "--processes", "2", "--restarts", "1"]
    for _ in range(2):
        found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (found.returncode, found.stderr) == (143, "")
        assert found.stdout.count("and does not wait while people judge") == 1
    assert asked(Database(tmp_path / "feedback.db")) == len(read_lines(out / "collect" / "samples.jsonl"))
