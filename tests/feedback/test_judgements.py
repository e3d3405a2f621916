"""Judgements: taken once, corrected and taken back, and the books held against a count of the rows themselves."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import func, select

from keel.feedback.database import Database
from keel.feedback.judgements import Said, answered_since, judge, said_by, standing
from keel.feedback.leases import give_back, lease, left_for, release_lapsed
from keel.feedback.projects import Settings, change_settings
from keel.feedback.refused import Refused
from keel.feedback.tables import Assignment, Judgement
from keel.feedback.tasks import add_tasks, progress
from tests.feedback.worlds import NOW, assert_books_balance, new_tasks, people, project

FIRST = Said("answer", {"best": 0, "strength": "clear"})
SECOND = Said("answer", {"best": 1, "strength": "clear"})
HALF_AN_HOUR = 30 * 60.0


def test_what_was_said_and_what_is_left_are_ones_own(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=5)
        add_tasks(session, made, new_tasks(2, purpose="gold", expected={"best": 0, "strength": "clear"}), now=NOW)
        one, two, three = lease(session, made, ann, count=3, now=NOW)
        assert (left_for(session, made, ann).count, left_for(session, made, bob).count) == (5, 2)
        judge(session, ann, "a", one.id, FIRST, now=NOW + 1)
        judge(session, ann, "b", two.id, Said("skip"), now=NOW + 2)
        judge(session, ann, "c", three.id, FIRST, now=NOW + 3)
        judge(session, ann, "d", one.id, SECOND, now=NOW + 4)
        assert (left_for(session, made, ann).count, left_for(session, made, bob).count) == (2, 3)
        mine = said_by(session, made, ann, count=9)
        assert [(judgement.key, assignment.id) for assignment, judgement in mine] == [
            ("d", one.id),
            ("c", three.id),
            ("b", two.id),
        ]
        assert [older.key for _, older in said_by(session, made, ann, count=1, before=mine[0][1].id)] == ["c"]
        assert said_by(session, made, bob, count=9) == []
        since = [answered_since(session, made, ann, NOW + second) for second in (0, 4, 5)]
        assert since == [2, 1, 0]
        assert answered_since(session, made, bob, 0) == 0
        judge(session, ann, "e", one.id, Said("withdrawn"), now=NOW + 6)
        assert (left_for(session, made, ann).count, answered_since(session, made, ann, 0)) == (3, 1)


def test_a_judgement_sent_again_is_the_same_one(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        first = judge(session, ann, "key", one.id, FIRST, now=NOW)
        assert judge(session, ann, "key", one.id, FIRST, now=NOW + 9) is first
        with pytest.raises(Refused, match="another judgement"):
            judge(session, ann, "key", one.id, SECOND, now=NOW + 9)
        assert session.scalar(select(func.count(Judgement.id))) == 1
        assert progress(session, made).votes == 1


def test_a_correction_is_a_row_and_one_vote(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        first = judge(session, ann, "a", one.id, FIRST, now=NOW)
        second = judge(session, ann, "b", one.id, SECOND, now=NOW + 1)
        assert second.replaces == first.id
        assert [(kept.id, kept.answer) for _, kept in standing(session, made)] == [
            (second.id, {"best": one.order[1], "strength": "clear"})
        ]
        assert progress(session, made).votes == 1
        assert_books_balance(session)


def test_an_undo_gives_the_task_back_to_the_same_person(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, FIRST, now=NOW)
        ((last, _),) = said_by(session, made, ann, count=2)
        judge(session, ann, "b", last.id, Said("withdrawn"), now=NOW + 1)
        assert progress(session, made).votes == 0
        assert standing(session, made) == []
        assert [held.id for held in lease(session, made, ann, count=1, now=NOW + 2)] == [one.id]
        with pytest.raises(Refused, match="nothing to take back"):
            judge(session, ann, "c", one.id, Said("withdrawn"), now=NOW + 3)


def test_what_is_skipped_is_left_to_others(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, Said("problem", comment="not English"), now=NOW)
        assert lease(session, made, ann, count=1, now=NOW) == []
        assert [held.task_id for held in lease(session, made, bob, count=1, now=NOW)] == [one.task_id]


def test_anothers_assignment_is_not_found(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        (one,) = lease(session, project(session), ann, count=1, now=NOW)
        with pytest.raises(Refused) as refused:
            judge(session, bob, "a", one.id, FIRST, now=NOW)
        assert refused.value.code == "not_found"
        give_back(session, bob, one.id)
        assert one.state == "leased"


def test_the_most_disputed_comes_first_and_gets_more_votes(database: Database) -> None:
    with database.writing() as session:
        ann, bob, cleo = people(session, "ann", "bob", "cleo")
        made = project(session, tasks=10, votes=2, choice="disputed", most_votes=3)
        held = {}
        for who in (ann, bob):
            for one in lease(session, made, who, count=5, now=NOW):
                held[who.name, one.task_id] = one
        disputed = next(task for name, task in held if name == "ann" and ("bob", task) in held)
        for (name, task), one in held.items():
            best = one.order.index(0 if name == "ann" or task != disputed else 1)
            said = Said("answer", {"best": best, "strength": "clear"})
            judge(session, ann if name == "ann" else bob, f"{name} {task}", one.id, said, now=NOW)
        (next_one,) = lease(session, made, cleo, count=1, now=NOW)
        assert next_one.task_id == disputed
        assert (next_one.task.seats, next_one.task.priority) == (3, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_books_balance_whatever_happens(database: Database, seed: int) -> None:
    """A random walk of leases, judgements, corrections, undos, skips, lapses and late answers."""
    rng = random.Random(seed)
    with database.writing() as session:
        users = people(session, "ann", "bob", "cleo")
        made = project(session, tasks=5, votes=2, choice=rng.choice(["random", "disputed"]), repeat_share=0.2)
        now = NOW
        for step in range(100):
            now += rng.choice([1.0, 60.0, HALF_AN_HOUR])
            who = rng.choice(users)
            act = rng.choice(["lease", "judge", "judge", "undo", "lapse", "give back"])
            mine = session.scalars(select(Assignment).where(Assignment.user_id == who.id)).all()
            if act == "lease":
                lease(session, made, who, count=rng.randint(1, 3), now=now)
            elif act == "lapse":
                release_lapsed(session, now=now)
            elif act == "undo" and (last := said_by(session, made, who, count=1)):
                judge(session, who, f"{step}", last[0][0].id, Said("withdrawn"), now=now)
            elif mine and act == "give back":
                give_back(session, who, rng.choice(mine).id)
            elif mine:
                said = rng.choice([FIRST, SECOND, Said("skip"), Said("problem")])
                judge(session, who, f"{step}", rng.choice(mine).id, said, now=now)
            assert_books_balance(session)


def test_a_retry_is_the_same_judgement_under_other_settings_too(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "rate", tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        said = Said("answer", {"ratings": [7, 6]})
        first = judge(session, ann, "key", one.id, said, now=NOW)
        change_settings(session, made, Settings(scale=(1, 5)))
        assert judge(session, ann, "key", one.id, said, now=NOW) is first
