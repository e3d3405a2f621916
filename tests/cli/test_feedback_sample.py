"""From a policy to people: who is asked what, once, and what first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from keel.build import load_renderer
from keel.build.doubt import doubts
from keel.cli import app
from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.judgements import Said
from keel.feedback.projects import Settings, add_project, all_projects, close_project, find_project, settings_of
from keel.feedback.tables import Kind, Task
from keel.feedback.tasks import NewResponse, NewTask, add_tasks
from keel.inputs import hash_model
from keel.models.export import save_reward_model
from keel.models.reward import RewardModel
from keel.schema import Sampled
from tests.feedback.judging import annotator, judge_next, said
from tests.feedback.worlds import NOW
from tests.worlds import save_tiny_lm, tiny_classifier, tiny_codec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_lm(folder)
    return folder


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("KEEL_FEEDBACK_DATABASE", str(tmp_path / "feedback.db"))
    rows = [{"prompt": "a b c"}, {"prompt": [{"role": "user", "content": "d e"}]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Database(tmp_path / "feedback.db")


def keel(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["feedback", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def sampled(model: Path | str, folder: Path, *options: object) -> str:
    return keel("sample", model, folder / "prompts.jsonl", "--project", "talk", "--max-new-tokens", 4, *options)


def tasks_in(database: Database) -> list[Task]:
    with database.reading() as session:
        found = list(session.scalars(select(Task).order_by(Task.id)))
        session.expunge_all()
        return found


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("compare", [2, 2, 2, 2, 2, 2]), ("rank", [3, 3]), ("rate", [3, 3]), ("review", [1, 1, 1, 1, 1, 1])],
)
def test_a_policy_is_asked_and_people_find_it(
    model: Path, database: Database, tmp_path: Path, kind: str, shape: list[int]
) -> None:
    said = sampled(model, tmp_path, "--per-prompt", 3, "--round", 2, "--kind", kind)
    version = hash_model(str(model))
    assert said == (
        f"The project talk is new; people find it by keel feedback serve --database {tmp_path}/feedback.db\n"
        f"{len(shape)} new tasks in talk: round 2, policy {version[:12]}\n"
    )
    tasks = tasks_in(database)
    assert [len(task.responses) for task in tasks] == shape
    assert {(task.round, task.policy_version) for task in tasks} == {(2, version)}
    assert tasks[0].prompt == "a b c"
    assert tasks[-1].prompt == [{"role": "user", "content": "d e"}]
    assert "0 new tasks in talk, " in sampled(model, tmp_path, "--per-prompt", 3, "--round", 2)
    assert sampled(model, tmp_path, "--per-prompt", 3, "--seed", 1).startswith(
        f"{len(shape)} new tasks in talk: round 1"
    )


def test_mistakes_are_sentences(model: Path, database: Database, tmp_path: Path) -> None:
    sampled(model, tmp_path)
    with pytest.raises(UserError, match="the project talk is there to compare, not to rank"):
        sampled(model, tmp_path, "--kind", "rank")
    with pytest.raises(UserError, match="identical; raise --temperature"):
        sampled(model, tmp_path, "--temperature", 0)
    with pytest.raises(UserError, match="there is no model directory"):
        sampled("./nothing", tmp_path)
    for kind, count, says in (
        ("compare", 1, "to compare, people need 2 responses to a prompt; raise --per-prompt 1"),
        ("rank", 1, "to rank, people need 2"),
        ("rate", 10, "people rate at most 9 responses to a prompt; lower --per-prompt 10"),
    ):
        with pytest.raises(UserError, match=says):
            keel("sample", model, tmp_path / "prompts.jsonl", "--project", kind, "--kind", kind, "--per-prompt", count)
    with pytest.raises(UserError, match="pass the model's context"):
        keel("sample", model, tmp_path / "prompts.jsonl", "--project", "long", "--max-new-tokens", 10**6)
    with database.reading() as session:
        assert [project.name for project in all_projects(session)] == ["talk"]  # a mistake makes none
    with pytest.raises(UserError, match="no project is called tea"):
        keel("prioritise", "tea", "--reward", model)


@pytest.mark.parametrize(("name", "says"), [("TALK", "there is a project talk already"), ("x" * 81, "1 to 80 letters")])
def test_a_name_is_refused_before_anything_is_sampled(
    model: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    with database.writing() as session:
        add_project(session, "talk", "compare", Settings(), now=NOW)
    monkeypatch.setattr("keel.build.generate_responses", lambda *_, **__: pytest.fail("it samples"))
    with pytest.raises(UserError, match=says):
        keel("sample", model, tmp_path / "prompts.jsonl", "--project", name)


@pytest.mark.parametrize("kind", ["compare", "rank", "review"])
def test_what_was_sampled_for_a_project_that_closes_meanwhile_is_in_a_file_to_import(
    model: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    with database.writing() as session:
        add_project(session, "talk", kind, Settings(), now=NOW)

    def respond(*_: object, **__: object) -> list[dict[str, object]]:
        with database.writing() as session:
            close_project(find_project(session, "talk"), now=NOW)
        return [{"response": said, "ended": True} for said in ("one", "two\n", "drei", "four")]

    monkeypatch.setattr("keel.build.generate_responses", respond)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the project talk is closed; ") as refused:
        sampled(model, tmp_path, "--round", 3)
    command = re.search(r"`keel feedback (import PROJECT sampled-\w+\.jsonl .*)` ", str(refused.value))
    assert command is not None
    assert tasks_in(database) == []
    assert "new tasks in tea" in keel(*command[1].replace("PROJECT", "tea").split())
    tasks = tasks_in(database)
    shape = 1 if kind == "review" else 2
    assert [len(task.responses) for task in tasks] == [shape] * (4 // shape)
    assert [one.text for task in tasks for one in task.responses] == ["one", "two\n", "drei", "four"]
    assert [task.prompt for task in (tasks[0], tasks[-1])] == ["a b c", [{"role": "user", "content": "d e"}]]
    assert {(task.round, task.policy_version) for task in tasks} == {(3, hash_model(str(model)))}


# --- what is asked first ---

SCALE = 2.0
PAIRS = [("a", "b"), ("c d", "e"), ("f a", "c"), ("b b b", "d")]


def save_reward(folder: Path, members: int) -> Path:
    codec = tiny_codec()
    model = RewardModel(tiny_classifier(vocab=len(codec.hf), num_labels=members), label=0 if members == 1 else None)
    model.eval().normalise([0.1 * member for member in range(members)], 0.5)
    save_reward_model(model, codec.hf, folder, scale=SCALE)
    return folder


def told(reward: Path, prompt: str, responses: tuple[str, ...]) -> float:
    """What a label would tell, by transformers and plain Python."""
    renderer = load_renderer(str(reward))
    model: Any = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    scores = []
    for response in responses:
        tokens = renderer.encode(prompt, response).tokens
        with torch.no_grad():
            scores.append(model(torch.tensor([tokens])).logits[0].double().tolist())
    return sum(of_pair(*pair) for pair in combinations(scores, 2)) / math.comb(len(scores), 2)


def of_pair(first: list[float], second: list[float]) -> float:
    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    odds = [1 / (1 + math.exp(-SCALE * (one - other))) for one, other in zip(first, second, strict=True)]
    overall = entropy(sum(odds) / len(odds))
    return overall if len(odds) == 1 else overall - sum(map(entropy, odds)) / len(odds)


@pytest.mark.parametrize("members", [1, 3])
def test_people_get_first_what_tells_most(tmp_path: Path, database: Database, members: int) -> None:
    with database.writing() as session:
        pairs = add_project(session, "talk", "compare", Settings(), now=NOW)
        new = [NewTask("a b c", [NewResponse(text, extra={"ended": True}) for text in pair]) for pair in PAIRS]
        add_tasks(session, pairs, new, now=NOW)
    ann, seen = annotator(database, "ann"), []
    assert judge_next(database, "talk", ann)
    (done,) = [task for task in tasks_in(database) if task.votes]

    reward = save_reward(tmp_path / "reward", members)
    output = keel("prioritise", "talk", "--reward", reward)
    assert output.startswith("3 open tasks of talk in order: a label tells 0.")
    tells: dict[tuple[str, ...], float] = {pair: told(reward, "a b c", pair) for pair in PAIRS}
    tasks = {tuple(one.text for one in task.responses): task for task in tasks_in(database)}
    assert {pair: task.priority for pair, task in tasks.items() if task.id != done.id} == pytest.approx(
        {pair: tells[pair] for pair, task in tasks.items() if task.id != done.id}, rel=1e-4
    )
    assert done.priority == 0
    with database.reading() as session:
        assert settings_of(find_project(session, "talk")).choice == "uncertain"

    def watching(texts: Sequence[str]) -> Said:
        seen.append(next(pair for pair in PAIRS if set(pair) == set(texts)))
        return said(0, "clear")

    while judge_next(database, "talk", ann, watching):
        pass
    assert [tells[pair] for pair in seen] == sorted((tells[pair] for pair in seen), reverse=True)
    assert keel("prioritise", "talk", "--reward", reward) == "Nothing in talk is open.\n"


def test_a_ranking_is_its_pairs(tmp_path: Path) -> None:
    reward, responses = save_reward(tmp_path / "reward", 3), ("a", "c d", "b e")
    (found,) = doubts(str(reward), [Sampled("a b c", responses, (True, True, True))], device="cpu", say=pytest.fail)
    assert found == pytest.approx(told(reward, "a b c", responses), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("rate", {}, "the project talk is there to rate: nothing in it is compared"),
        ("compare", {"choice": "disputed", "votes": 2}, "gives what is disputed first; set its choice: uncertain"),
    ],
)
def test_what_has_no_such_order_is_refused(database: Database, kind: Kind, settings: dict[str, Any], says: str) -> None:
    with database.writing() as session:
        add_project(session, "talk", kind, Settings(**settings), now=NOW)
    with pytest.raises(UserError, match=says):
        keel("prioritise", "talk", "--reward", "nowhere")
