"""People asked through the feedback database: each pair once, and each answer to the pair it was given to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from keel.annotate.app import PeopleInApp
from keel.annotate.people import Away, Standing
from keel.errors import UserError
from keel.feedback import leases
from keel.feedback.contents import imports, set_withdrawn
from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.projects import Settings, change_settings, close_project, find_project, settings_of
from keel.feedback.tables import Assignment, Task, User
from keel.schema import Message, Sampled
from tests.feedback.judging import annotator, judge_all, said
from tests.feedback.worlds import NOW, project

QUESTIONS = [
    Sampled("tea or coffee?", ("tea", "coffee"), (True, False)),
    Sampled((Message("system", "Be terse."), Message("user", "why?")), ("because", "so"), (True, True)),
    Sampled("equal?", ("yes", "no."), (True, True)),
]


def panel_on(database: Database, **changes: Any) -> PeopleInApp:
    settings: dict[str, Any] = {"votes": None, "round": 3, "policy_version": "v1"}
    return PeopleInApp(database, "talk", **(settings | changes))


def tasks_in(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count(Task.id))) or 0


def test_each_answer_comes_back_to_its_pair(database: Database) -> None:
    panel = panel_on(database, votes=2)
    assert panel.publish(QUESTIONS) == 3
    assert panel.standing() == Standing(3, 0, 0, 6, {})
    ann, ben = annotator(database, "ann"), annotator(database, "ben")
    assert judge_all(database, "talk", ben, most=1) == 1
    assert judge_all(database, "talk", ann) == 3
    assert panel.standing() == Standing(3, 1, 4, 6, {"ann": 3, "ben": 1})
    judge_all(database, "talk", ben, lambda texts: said(None, "both_bad"))
    assert panel.standing() == Standing(3, 3, 6, 6, {"ann": 3, "ben": 3})
    opinions = panel.opinions()
    assert [one.question for one in opinions] == [0, 0, 1, 1, 2, 2]
    by_ann = [one for one in opinions if one.annotator == "ann"]
    assert [(one.best, one.strength) for one in by_ann] == [(1, "clear"), (0, "clear"), (None, "tie")]
    assert {one.seconds for one in opinions} == {2.5}


def test_the_place_of_a_response_on_the_screen_is_known(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes what stands first is said to have: their best is what was shown first."""
    monkeypatch.setattr(leases, "_chance", random.Random(0))  # twelve orders that fell alike would show one place only
    many = [Sampled(f"question {n}", (f"one {n}", f"other {n}"), (True, True)) for n in range(12)]
    panel = panel_on(database)
    panel.publish(many)
    judge_all(database, "talk", annotator(database, "ann"), lambda texts: said(0, "clear"))
    opinions = panel.opinions()
    assert all(one.best == one.shown_first for one in opinions)
    assert {one.shown_first for one in opinions} == {0, 1}


def test_nothing_is_asked_twice(database: Database) -> None:
    assert panel_on(database).publish(QUESTIONS) == 3
    again = panel_on(database)
    assert again.publish(QUESTIONS) == 0
    judge_all(database, "talk", annotator(database, "ann"))
    assert len(again.opinions()) == 3
    assert tasks_in(database) == 3
    another_round = panel_on(database, round=4)
    assert another_round.publish(QUESTIONS) == 3
    assert (again.standing().questions, another_round.standing().votes) == (3, 0)
    assert panel_on(database, policy_version="v2").publish(QUESTIONS) == 3


def test_what_was_withdrawn_stays_so_when_the_run_looks_again(database: Database) -> None:
    panel = panel_on(database)
    panel.publish(QUESTIONS)
    judge_all(database, "talk", annotator(database, "ann"), most=2)
    with database.writing() as session:
        made = find_project(session, "talk")
        (one,) = imports(session, made)
        set_withdrawn(session, made, one.number, True, now=NOW)
    again = panel_on(database)
    assert again.publish(QUESTIONS) == 0
    assert again.standing() == Standing(0, 0, 0, 0, {})
    assert again.opinions() == []


def test_the_same_pair_twice_is_one(database: Database) -> None:
    panel = panel_on(database)
    assert panel.publish([*QUESTIONS, QUESTIONS[0]]) == 3
    judge_all(database, "talk", annotator(database, "ann"))
    assert [one.question for one in panel.opinions()] == [0, 1, 2]


def test_an_answer_that_was_taken_back_is_none(database: Database) -> None:
    panel = panel_on(database)
    panel.publish(QUESTIONS)
    ann = annotator(database, "ann")
    judge_all(database, "talk", ann)
    with database.writing() as session:
        user = session.get_one(User, ann)
        one = session.scalars(select(Assignment.id).limit(1)).one()
        judge(session, user, "back", one, Said("withdrawn"), now=NOW)
    assert len(panel.opinions()) == 2
    assert panel.standing() == Standing(3, 2, 2, 3, {"ann": 2})


def test_skipped_tasks_and_hidden_repeats_are_no_votes(database: Database) -> None:
    panel = panel_on(database)
    panel.publish([Sampled(f"question {n}", (f"one {n}", f"another {n}"), (True, True)) for n in range(40)])
    with database.writing() as session:
        change_settings(session, find_project(session, "talk"), Settings(repeat_share=0.5))
    assert judge_all(database, "talk", annotator(database, "ben"), lambda texts: Said("skip"), most=2) == 2
    assert judge_all(database, "talk", annotator(database, "ann")) > 40
    assert panel.standing() == Standing(40, 40, 40, 40, {"ann": 40})
    assert [one.question for one in panel.opinions()] == list(range(40))


def test_seconds_are_told_to_the_millisecond(database: Database) -> None:
    panel = panel_on(database)
    panel.publish(QUESTIONS[:1])
    slowly = Said("answer", {"best": 0, "strength": "clear"}, duration=12.345600000000341)
    judge_all(database, "talk", annotator(database, "ann"), lambda texts: slowly)
    assert [one.seconds for one in panel.opinions()] == [12.346]


def test_what_no_database_holds_is_asked_without_it(database: Database) -> None:
    panel = panel_on(database)
    panel.publish([Sampled("a\x00b", ("half \ud800", "nul \x00"), (True, True))])
    judge_all(database, "talk", annotator(database, "ann"), lambda texts: said(0, "clear"))
    assert [one.question for one in panel.opinions()] == [0]


def close(database: Database) -> None:
    with database.writing() as session:
        close_project(find_project(session, "talk"), now=NOW)


def test_a_project_that_is_closed_gives_the_rest_to_nobody(database: Database) -> None:
    panel = panel_on(database)
    panel.publish(QUESTIONS)
    close(database)
    assert not panel.standing().open
    with pytest.raises(UserError, match="the project talk is closed"):
        panel_on(database)


def test_a_project_of_another_kind_is_refused(database: Database) -> None:
    with database.writing() as session:
        rank = project(session, "rank").name
    with pytest.raises(UserError, match=f"people: the project {rank} is there to rank, not to compare"):
        PeopleInApp(database, rank, votes=None, round=1, policy_version="v1")


def test_other_votes_than_the_projects_are_refused(database: Database) -> None:
    panel_on(database, votes=3)
    with database.reading() as session:
        assert settings_of(find_project(session, "talk")).votes == 3
    panel_on(database, votes=None)
    with pytest.raises(UserError, match="asks for 3 votes a task, not 2"):
        panel_on(database, votes=2)


@pytest.mark.parametrize("ask", [PeopleInApp.standing, PeopleInApp.opinions, lambda panel: panel.publish(QUESTIONS)])
def test_a_database_that_does_not_answer_may_be_asked_again(
    database: Database, ask: Callable[[PeopleInApp], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = panel_on(database)
    panel.publish(QUESTIONS)

    def gone(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    event.listen(database._engine, "before_cursor_execute", gone)
    with pytest.raises(Away, match="the feedback database does not answer"):
        ask(panel)
    event.remove(database._engine, "before_cursor_execute", gone)
    ask(panel)
