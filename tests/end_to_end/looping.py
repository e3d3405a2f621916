"""Two rounds: a policy's responses before people, a reward model from what they say, and the policy that follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.feedback.database import Database
from keel.feedback.tables import Task
from keel.inputs import hash_model
from keel.runs.console import SilentConsole
from keel.runs.metrics import read_lines
from tests.end_to_end.tiny import tiny_recipe

PROJECT = "talk"
VOTES = 2
PATIENCE = 300.0  # seconds until a test that hangs fails
Judging = Callable[[int], None]
"""People judge everything that is open, which so many tasks of the project are."""


def go_round(folder: Path, database: Database, judging: Judging) -> None:
    """Raises AssertionError where the second round's tasks are not the new policy's, or anything is lost on the way."""
    first, second = folder / "first", folder / "second"
    stages = ["direct=null", "evaluate=null", "sft.epochs=1", "ppo.iterations=2", "ppo.reward=[{model: reward}]"]
    with running(tiny_recipe([*people(folder, 1), *stages]), first):
        tasks = published(database, 1)
        judging(len(tasks))
    rows = read_lines(first / "collect" / "comparisons" / "comparisons.jsonl")
    assert len(rows) == VOTES * len(tasks)
    policy = first / "ppo" / "model"
    after = [f"{stage}=null" for stage in ("sft", "reward", "direct", "ppo", "evaluate")]
    with running(tiny_recipe([*people(folder, 2), *after, f"model={{base: '{policy}'}}"]), second):
        again = published(database, 2)
        judging(len(again))
    versions = {one.policy_version for one in tasks}, {one.policy_version for one in again}
    assert versions == ({hash_model(str(first / "sft" / "model"))}, {hash_model(str(policy))})
    assert versions[0] != versions[1]
    said = read_lines(second / "collect" / "comparisons" / "comparisons.jsonl")
    assert {(row["round"], row["policy_version"]) for row in said} == {(2, *versions[1])}
    assert len({row["annotator"] for row in said}) == 2


def people(folder: Path, round: int) -> list[str]:
    who = f"{{project: {PROJECT}, database: '{folder / 'feedback.db'}', votes: {VOTES}, round: {round}}}"
    return [f"collect.annotator={{people: {who}}}", "collect.prompts.limit=10"]


@contextmanager
def running(recipe: Recipe, out: Path) -> Iterator[None]:
    """The run goes on beside what is done inside, and has ended well afterwards."""
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            run_recipe(recipe, out, console=SilentConsole())
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    if wrong:
        raise wrong[0]
    assert not thread.is_alive(), "the run still waits"


def until(happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def published(database: Database, round: int) -> list[Any]:
    """The tasks of a round, once they are there."""
    found: list[Any] = []

    def look() -> bool:
        with database.reading() as session:
            found[:] = session.execute(select(Task.id, Task.policy_version).where(Task.round == round)).all()
        return bool(found)

    until(look)
    return found
