"""Files to tasks: counted and read back row by row, in one transaction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keel.config.data import DataConfig
from keel.data.reasons import Reason
from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.importing import Imported, Meant, import_tasks
from keel.feedback.projects import find_project
from keel.feedback.tables import Kind, Project, Task
from tests.feedback.worlds import NOW, project, tasks_of


def imported(session: Session, made: Project, folder: Path, rows: list[Any], **more: Any) -> Imported:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return import_tasks(session, made, [DataConfig(path=str(file))], Meant(**more), now=NOW)


def texts(task: Task) -> list[str]:
    return [response.text for response in task.responses]


def test_every_kind_of_row_becomes_tasks(database: Database, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "topic": "sea", "sources": ["sft", "ppo"]},
        {"prompt": "p", "chosen": "good", "rejected": "bad", "annotator": "ann"},
        {"prompt": [{"role": "user", "content": "hi"}], "responses": ["x", "y"], "ranks": [2, 1]},
    ]
    with database.writing() as session:
        made = project(session, tasks=0)
        done = imported(session, made, tmp_path, rows, round=3, policy_version="v7")
        assert (done.added.new, done.added.known, done.left_out) == (3, 0, {})
        tasks = tasks_of(session, made)
        assert [texts(task) for task in tasks] == [["a", "b"], ["good", "bad"], ["x", "y"]]
        assert [task.prompt for task in tasks] == ["p", "p", [{"role": "user", "content": "hi"}]]
        assert (tasks[0].row, [one.source for one in tasks[0].responses]) == ({"topic": "sea"}, ["sft", "ppo"])
        assert {(task.round, task.policy_version, task.purpose, task.expected) for task in tasks} == {
            (3, "v7", "label", None)
        }
        again = imported(session, made, tmp_path, rows, round=3)
        assert (again.added.new, again.added.known) == (0, 3)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("compare", [["a", "b"], ["a", "c"], ["b", "c"]]),
        ("rank", [["a", "b", "c"]]),
        ("rate", [["a", "b", "c"]]),
        ("review", [["a"], ["b"], ["c"]]),
    ],
)
def test_of_many_responses_each_project_takes_what_it_judges(
    database: Database, tmp_path: Path, kind: Kind, wanted: list[list[str]]
) -> None:
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        done = imported(session, made, tmp_path, [{"prompt": "p", "responses": ["a", "b", " a", "c"]}])
        assert [texts(task) for task in tasks_of(session, made)] == wanted
        assert done.repeated == 1


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("compare", {"chosen": "a", "rejected": "b"}, {"best": 0, "strength": "clear"}),
        ("compare", {"responses": ["a", "b"], "ranks": [2, 1]}, {"best": 1, "strength": "clear"}),
        ("compare", {"responses": ["a", "b"], "ranks": [1, 1]}, {"best": None, "strength": "tie"}),
        ("compare", {"responses": ["a", "b"], "preferred": "second"}, {"best": 1, "strength": "clear"}),
        ("rank", {"responses": ["a", "b", "c"], "ranks": [3, 1, 2]}, {"ranks": [3, 1, 2]}),
        ("rank", {"responses": ["a", "b", "c"], "ranks": [0, 30, 0]}, {"ranks": [1, 2, 1]}),
        ("rank", {"chosen": "a", "rejected": "b"}, {"ranks": [1, 2]}),
        ("rate", {"response": "a", "rating": 6}, {"ratings": [6]}),
        ("review", {"response": "a", "accepted": False}, {"accepted": False, "edited": None}),
    ],
)
def test_what_a_row_says_is_the_answer_of_gold(
    database: Database, tmp_path: Path, kind: Kind, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        imported(session, made, tmp_path, [{"prompt": "p"} | row], purpose="gold")
        (task,) = tasks_of(session, made)
        assert (task.purpose, task.expected) == ("gold", expected)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("compare", {"prompt": "p", "responses": ["a", "a "]}, Reason.SAME_RESPONSES),
        ("compare", {"prompt": "p", "responses": ["a", ""]}, Reason.EMPTY_RESPONSE),
        ("compare", {"prompt": " ", "responses": ["a", "b"]}, Reason.EMPTY_PROMPT),
        ("compare", {"prompt": "p"}, Reason.MISSING_FIELD),
        ("compare", {"prompt": "p", "response": "a"}, Reason.WRONG_TYPE),
        ("compare", {"prompt": "p", "responses": ["a", "b\x00"]}, Reason.WRONG_TYPE),
        ("rank", {"prompt": "p", "responses": [str(k) for k in range(10)]}, Reason.WRONG_TYPE),
        ("review", {"text": "a tale"}, Reason.EMPTY_PROMPT),
        ("compare", "no object", Reason.NOT_JSON),
    ],
)
def test_what_is_no_task_is_left_out_with_its_reason(
    database: Database, tmp_path: Path, kind: Kind, row: Any, reason: Reason
) -> None:
    good = {"prompt": "p", "responses": ["a", "b"]}
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        done = imported(session, made, tmp_path, [good, row])
        assert (done.left_out, done.check.usable) == ({reason: 1}, 1)
        (found,) = done.check.findings
        assert found.row == 1
        with pytest.raises(UserError, match=reason.value):
            imported(session, made, tmp_path, [row])


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("compare", {"responses": ["a", "b"]}),
        ("compare", {"responses": ["a", "b", "a"], "ranks": [1, 2, 3]}),
        ("rate", {"response": "a", "rating": 3.5}),
        ("rate", {"response": "a", "rating": 9}),
        ("rate", {"response": "a"}),
        ("review", {"response": "a", "rating": 3}),
    ],
)
def test_gold_without_a_usable_answer_is_left_out(
    database: Database, tmp_path: Path, kind: Kind, row: dict[str, Any]
) -> None:
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        with pytest.raises(UserError, match="none of its 1 rows"):
            imported(session, made, tmp_path, [{"prompt": "p"} | row], purpose="gold")


def test_files_of_every_form_and_columns_of_other_names(database: Database, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("question,one,two\nwhy?,a,b\nhow?,c,d\n")
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    fields = {"prompt": "question", "responses": ("one", "two")}
    with database.writing() as session:
        made = project(session, tasks=0)
        sources = [DataConfig.model_validate({"path": str(table), "fields": fields}), DataConfig(path=str(array))]
        assert import_tasks(session, made, sources, Meant(), now=NOW).added.new == 3
        assert [texts(task) for task in tasks_of(session, made)] == [["a", "b"], ["c", "d"], ["x", "y"]]


def test_a_file_that_fails_in_its_midst_leaves_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file is no data, after a first that is, in several batches."""
    monkeypatch.setattr("keel.feedback.importing._AT_ONCE", 7)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.parquet"
    good.write_text("".join(json.dumps({"prompt": f"p{k}", "responses": ["a", "b"]}) + "\n" for k in range(30)))
    bad.write_bytes(b"PAR1 and nothing else")
    with database.writing() as session:
        name = project(session, tasks=0).name
    sources = [DataConfig(path=str(one)) for one in (good, bad)]
    with pytest.raises(UserError, match="damaged Parquet"), database.writing() as session:
        import_tasks(session, find_project(session, name), sources, Meant(), now=NOW)
    with database.reading() as session:
        assert session.scalar(select(func.count(Task.id))) == 0


def test_more_tasks_than_any_project_needs_are_refused(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keel.feedback.importing.MOST_TASKS", 10)
    with database.writing() as session:
        made = project(session, tasks=0)
        with pytest.raises(UserError, match="more than 10 tasks"):
            imported(session, made, tmp_path, [{"prompt": "p", "responses": [str(k) for k in range(6)]}])
