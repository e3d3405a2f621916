"""What is held in memory while people judge: no model."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from keel.annotate.app import PeopleInApp
from keel.build import run_recipe
from keel.build.shelf import Shelf
from keel.errors import UserError
from keel.feedback.database import Database
from keel.models.policy import Policy
from keel.runs.console import SilentConsole
from keel.runs.leaving import Left
from keel.runs.metrics import read_lines
from keel.schema import Sampled
from tests.end_to_end.test_people import asking, recipe_of
from tests.feedback.judging import annotator, judge_all

Held = list[weakref.ref[Any]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    run_recipe(recipe_of("sft.epochs=1", "collect=null"), out, console=SilentConsole())
    return out / "sft" / "model"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """The model that samples and its weights, as far as they have been loaded; nothing here keeps them alive."""
    made: Held = []
    load = Shelf.frozen_policy

    def loading(shelf: Shelf, source: str, role: str) -> Policy:
        loaded = load(shelf, source, role)
        made.extend(map(weakref.ref, [loaded, *loaded.parameters()]))
        return loaded

    monkeypatch.setattr(Shelf, "frozen_policy", loading)
    return made


def test_no_model_is_held_while_people_judge(
    policy: Path, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one loaded where everything was sampled before, or where there is nobody to ask."""
    seen: list[tuple[int, int]] = []  # how many were loaded, how many are alive, when people are asked
    publish = PeopleInApp.publish

    def asks(panel: PeopleInApp, questions: Sequence[Sampled]) -> int:
        seen.append((len(held), sum(one() is not None for one in held)))
        return publish(panel, questions)

    monkeypatch.setattr(PeopleInApp, "publish", asks)
    path = tmp_path / "feedback.db"
    recipe = asking(policy, path, "collect.annotator.people.wait=false")
    with pytest.raises(Left):
        run_recipe(recipe, tmp_path / "run", console=SilentConsole())
    ((loaded, alive),) = seen
    assert loaded > 1
    assert alive == 0

    database = Database(path)
    assert judge_all(database, "talk", annotator(database, "ann")) > 0
    run_recipe(recipe, tmp_path / "run", console=SilentConsole())
    assert len(held) == loaded
    assert read_lines(tmp_path / "run" / "collect" / "comparisons" / "comparisons.jsonl")


def test_a_project_that_cannot_be_asked_is_told_before_anything_is_sampled(
    policy: Path, held: Held, tmp_path: Path
) -> None:
    recipe = asking(policy, tmp_path / "feedback.db", "collect.annotator.people.wait=false")
    with pytest.raises(Left):
        run_recipe(recipe, tmp_path / "run", console=SilentConsole())
    held.clear()
    several = asking(policy, tmp_path / "feedback.db", "collect.annotator.people.votes=2")
    with pytest.raises(UserError, match="asks for 1 vote a task, not 2"):
        run_recipe(several, tmp_path / "other", console=SilentConsole())
    assert held == []
