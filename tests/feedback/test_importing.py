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
from keel.feedback.importing import Imported, Meant, put_tasks, read_tasks
from keel.feedback.projects import Settings, change_settings, find_project
from keel.feedback.refused import Refused
from keel.feedback.tables import Kind, Project, Task
from keel.feedback.tasks import Added
from tests.feedback.worlds import NOW, people, project, tasks_of


def imported(session: Session, made: Project, folder: Path, rows: list[Any], **more: Any) -> Imported:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return put(session, made, [DataConfig(path=str(file))], **more)


def put(session: Session, made: Project, sources: list[DataConfig], **more: Any) -> Imported:
    with read_tasks(made, sources, Meant(**more), now=NOW) as read:
        return put_tasks(session, made, read)


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


def test_what_was_left_out_is_named_by_its_row_the_first_few_of_it(database: Database, tmp_path: Path) -> None:
    good, same = {"prompt": "p", "responses": ["a", "b"]}, {"prompt": "p", "responses": ["a", "a"]}
    rows = [good, same, good, {"prompt": "p", "responses": ["a", ""]}, same, same, same, {"prompt": " "}, same]
    with database.writing() as session:
        made = project(session, tasks=0)
        told = imported(session, made, tmp_path, rows).in_words("p")
        again = imported(session, made, tmp_path, [good, {"prompt": "q", "responses": ["a", "b"]}, good])
    file = tmp_path / "rows.jsonl"
    alike = "The chosen and the rejected response are the same."
    assert told == [
        "1 new task in p, 1 was a duplicate among them.",
        "7 were left out; rows count from 0.",
        f"Row 1 of {file}: {alike}",
        f"Row 3 of {file}: A response is empty (response 2).",
        f"Row 4 of {file}: {alike}",
        f"Row 5 of {file}: {alike}",
        f"Row 6 of {file}: {alike}",
        "And 2 more.",
    ]
    assert again.in_words("p") == ["1 new task in p, 2 were there already."]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_duplicates_are_told_from_what_was_there(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However many rows are put there at a time."""
    monkeypatch.setattr("keel.feedback.tasks._AT_ONCE", size)
    rows = [{"prompt": prompt, "responses": ["a", "b"]} for prompt in "abcd"]
    with database.writing() as session:
        made = project(session, tasks=0)
        imported(session, made, tmp_path, rows[:2])
        done = imported(session, made, tmp_path, [*rows, rows[3], rows[0], rows[3]])
    assert done.added == Added(new=2, known=3, duplicates=2)


@pytest.mark.parametrize(
    ("row", "texts_of_it"),
    [
        ({"responses": ["a", "b"], "chosen": None, "rejected": None}, ["a", "b"]),
        ({"responses": None, "chosen": "c", "rejected": "d"}, ["c", "d"]),
    ],
)
def test_a_column_that_is_null_is_none(
    database: Database, tmp_path: Path, row: dict[str, Any], texts_of_it: list[str]
) -> None:
    with database.writing() as session:
        made = project(session, tasks=0)
        done = imported(session, made, tmp_path, [{"prompt": "p"} | row])
        assert (done.left_out, [texts(task) for task in tasks_of(session, made)]) == ({}, [texts_of_it])


@pytest.mark.parametrize(
    ("header", "fields", "says"),
    [
        (
            "prompt,response_a,response_b,preference",
            {},
            "(1: rows 0, such as no responses; the row has prompt, response_a, response_b, preference; "
            "`keel feedback import --field responses=response_a,response_b` reads columns of other names);",
        ),
        ("prompt,one,two,three", {}, "`keel feedback import --field responses=ONE,TWO` reads columns of other names"),
        (
            "prompt,one,two,three",
            {"responses": "nocol"},
            "such as no responses (column nocol); the row has prompt, one, two, three);",
        ),
        (
            "prompt,one,two,three",
            {"responses": ("one", "nocol")},
            "such as no responses (column nocol); the row has prompt, one, two, three);",
        ),
    ],
)
def test_columns_of_other_names_are_named_with_how_they_are_read(
    database: Database, tmp_path: Path, header: str, fields: dict[str, Any], says: str
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(f"{header}\nwhy?,a,b,1\n")
    source = DataConfig.model_validate({"path": str(file), "fields": fields})
    with database.writing() as session:
        made = project(session, tasks=0)
        with pytest.raises(UserError) as error:
            put(session, made, [source])
    assert says in str(error.value)


def test_files_of_every_form_and_columns_of_other_names(database: Database, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("question,one,two\nwhy?,a,b\nhow?,c,d\n")
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    fields = {"prompt": "question", "responses": ("one", "two")}
    with database.writing() as session:
        made = project(session, tasks=0)
        sources = [DataConfig.model_validate({"path": str(table), "fields": fields}), DataConfig(path=str(array))]
        assert put(session, made, sources).added.new == 3
        assert [texts(task) for task in tasks_of(session, made)] == [["a", "b"], ["c", "d"], ["x", "y"]]


def test_a_file_that_fails_in_its_midst_leaves_nothing(database: Database, tmp_path: Path) -> None:
    """The second file is no data, after a first that is."""
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.parquet"
    good.write_text("".join(json.dumps({"prompt": f"p{k}", "responses": ["a", "b"]}) + "\n" for k in range(30)))
    bad.write_bytes(b"PAR1 and nothing else")
    with database.writing() as session:
        name = project(session, tasks=0).name
    sources = [DataConfig(path=str(one)) for one in (good, bad)]
    with pytest.raises(UserError, match="damaged Parquet"), database.writing() as session:
        put(session, find_project(session, name), sources)
    with database.reading() as session:
        assert session.scalar(select(func.count(Task.id))) == 0


def test_files_are_read_while_others_write_and_put_there_in_batches(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keel.feedback.tasks._AT_ONCE", 7)
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{k % 25}", "responses": [f"a{k % 25}", f"b{k % 25}"]} for k in range(30)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with database.writing() as session:
        made = project(session, tasks=0, votes=3)
        session.expunge(made)
    with read_tasks(made, [DataConfig(path=str(file))], Meant(), now=NOW) as read:
        with database.writing() as session:  # nothing is locked
            people(session, "ann")
        with database.writing() as session:
            done = put_tasks(session, find_project(session, made.name), read)
    assert done.added == Added(new=25, known=0, duplicates=5)
    with database.reading() as session:
        tasks = tasks_of(session, made)
        assert [(task.prompt, texts(task)) for task in tasks] == [(f"p{k}", [f"a{k}", f"b{k}"]) for k in range(25)]
        assert {(task.seats, task.seats_taken, task.votes, task.created_at) for task in tasks} == {(3, 0, 0, NOW)}


def test_what_was_read_for_other_settings_is_refused(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "p", "response": "a", "rating": 9}) + "\n")
    with database.writing() as session:
        made = project(session, "rate", tasks=0, scale=(1, 9))
        with read_tasks(made, [DataConfig(path=str(file))], Meant("gold"), now=NOW) as read:
            change_settings(session, made, Settings(scale=(1, 5)))
            with pytest.raises(Refused, match="changed while the files were read"):
                put_tasks(session, made, read)


def test_numbers_that_are_none_become_null_wherever_they_stand(database: Database, tmp_path: Path) -> None:
    """PostgreSQL takes no others, and so no backup that holds any."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"prompt": "p", "responses": ["a", "b"], "score": NaN, "scores": [1.5, {"low": -Infinity}, Infinity], "n": 2}'
    )
    with database.writing() as session:
        made = project(session, tasks=0)
        put(session, made, [DataConfig(path=str(file))])
        (task,) = tasks_of(session, made)
        assert task.row == {"score": None, "scores": [1.5, {"low": None}, None], "n": 2}


def test_more_tasks_than_any_project_needs_are_refused(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keel.feedback.importing.MOST_TASKS", 10)
    with database.writing() as session:
        made = project(session, tasks=0)
        with pytest.raises(UserError, match="more than 10 tasks"):
            imported(session, made, tmp_path, [{"prompt": "p", "responses": [str(k) for k in range(6)]}])
