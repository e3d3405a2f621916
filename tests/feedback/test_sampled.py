"""What a policy said becomes tasks of each kind; the same words become the same tasks."""

from __future__ import annotations

import pytest

from keel.feedback.database import Database
from keel.feedback.projects import Settings, add_project
from keel.feedback.refused import Refused
from keel.feedback.sampled import open_project, tasks_of
from keel.feedback.tables import Kind
from keel.schema import Message, Sampled
from tests.feedback.worlds import NOW

SAID = [
    Sampled("first", ("a", "b", "a ", "c"), (True, False, True, True)),
    Sampled((Message("user", "second"),), ("d", "d", "d"), (True, True, True)),
]


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("compare", [["a", "b"], ["a", "c"], ["b", "c"]]),
        ("rank", [["a", "b", "c"]]),
        ("rate", [["a", "b", "c"], ["d"]]),
        ("review", [["a"], ["b"], ["c"], ["d"]]),
    ],
)
def test_different_responses_are_asked_about(kind: Kind, groups: list[list[str]]) -> None:
    tasks = tasks_of(kind, SAID, round=2, policy_version="v")
    assert [[response.text for response in task.responses] for task in tasks] == groups
    assert {(task.round, task.policy_version) for task in tasks} == {(2, "v")}
    assert len({task.batch for task in tasks}) == 1
    ended = {response.text: response.extra["ended"] for task in tasks for response in task.responses}
    assert all(end == (text != "b") for text, end in ended.items())


def test_a_batch_is_named_by_what_is_asked() -> None:
    def name(sampled: list[Sampled], round: int = 1, policy_version: str = "v") -> str | None:
        return tasks_of("compare", sampled, round=round, policy_version=policy_version)[0].batch

    assert name(SAID) == name(list(SAID))
    others = [name(SAID, 2), name(SAID, policy_version="w"), name([Sampled("other", ("a", "b"), (True, True))])]
    assert len({name(SAID), *others}) == 4


def test_what_no_database_holds_is_shown_as_a_replacement() -> None:
    (task,) = tasks_of("review", [Sampled("a\x00", ("b\udfff",), (True,))], round=1, policy_version="v")
    assert (task.prompt, task.responses[0].text) == ("a\ufffd", "b\ufffd")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TALK", "there is a project talk already"),
        ("äpfel", "there is a project Äpfel already"),
        ("x" * 81, "1 to 80 letters"),
        (" ", "1 to 80 letters"),
        ("a\tb", "no control characters"),
        ("a\x00b", "name: a NUL character"),
        ("a\udfffb", "name: a NUL character, or half of a surrogate pair, is no text"),
    ],
)
def test_a_name_that_no_project_may_get_is_refused_while_none_is_made_yet(
    database: Database, name: str, says: str
) -> None:
    with database.writing() as session:
        for there in ("talk", "Äpfel"):
            add_project(session, there, "compare", Settings(), now=NOW)
    with database.reading() as session:
        with pytest.raises(Refused, match=says):
            open_project(session, name, None, None)
        with pytest.raises(Refused, match=says):
            add_project(session, name, "compare", Settings(), now=NOW)
        found = open_project(session, " talk ", None, None)
        assert found is not None
        assert found.name == "talk"
        assert open_project(session, "tea", None, None) is None
