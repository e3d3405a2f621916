"""What is in a project, and imports that are withdrawn: lent to nobody, counted nowhere, kept all the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from keel.config.data import DataConfig
from keel.feedback import overview
from keel.feedback.contents import Sought, find_tasks, imports, set_withdrawn
from keel.feedback.database import Database
from keel.feedback.export import Wanted, export_files
from keel.feedback.importing import Meant, put_tasks, read_tasks
from keel.feedback.judgements import Said, judge, standing
from keel.feedback.leases import REPEAT_AFTER, free_seat, give_back, lease, left_for, release_lapsed, renew
from keel.feedback.priorities import open_tasks
from keel.feedback.projects import Settings, change_settings, find_project
from keel.feedback.quality import quality
from keel.feedback.refused import Refused
from keel.feedback.tables import Assignment, Judgement, Project, Purpose, Task, User
from keel.feedback.tasks import add_tasks, known_answers, progress, progress_of_rounds
from tests.feedback.worlds import NOW, answered, assert_books_balance, meanwhile, new_tasks, people, project, tasks_of

CLEAR = {"best": 0, "strength": "clear"}
FIRST = Said("answer", CLEAR)
HALF_AN_HOUR = 30 * 60.0


def withdraw(session: Session, made: Project, number: int, *, now: float = NOW) -> None:
    set_withdrawn(session, made, number, True, now=now)
    session.expire_all()


def numbers(tasks: Sequence[Task]) -> list[int]:
    return [one.id for one in tasks]


def test_what_was_put_in_at_once_is_one_import(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=3)
        project(session, tasks=2)
        add_tasks(session, made, new_tasks(2, round=2, policy_version="v2", batch="b"), now=NOW + 5)
        add_tasks(session, made, new_tasks(4, purpose="gold", expected=CLEAR), now=NOW + 5)
        (ann,) = people(session, "ann")
        answered(session, made, ann, tasks_of(session, made)[1], CLEAR)
        told = [(one.created_at, one.purpose, one.round, one.policy_version) for one in imports(session, made)]
        assert told == [(NOW + 5, "gold", 1, None), (NOW + 5, "label", 2, "v2"), (NOW, "label", 1, None)]
        assert [(one.number, one.tasks, one.votes) for one in imports(session, made)] == [
            (8, 4, 0),
            (6, 2, 0),
            (1, 3, 1),
        ]
        withdraw(session, made, 6, now=NOW + 9)
        assert [one.withdrawn_at for one in imports(session, made)] == [None, NOW + 9, None]
        assert set_withdrawn(session, made, 6, True, now=NOW + 10).withdrawn_at == NOW + 9  # it is so already
        assert set_withdrawn(session, made, 6, False, now=NOW).withdrawn_at is None


@pytest.mark.parametrize("number", [2, 4, 99])
def test_only_an_import_of_the_project_is_withdrawn(database: Database, number: int) -> None:
    """2 is a task within one, 4 another project's."""
    with database.writing() as session:
        made = project(session, tasks=3)
        project(session, tasks=1)
        with pytest.raises(Refused, match=f"has no import {number}"):
            set_withdrawn(session, made, number, True, now=NOW)
        assert session.scalar(select(func.count()).where(Task.withdrawn_at.is_not(None))) == 0


@pytest.mark.parametrize("purpose", ["label", "gold", "practice"])
def test_what_is_withdrawn_is_lent_to_nobody(database: Database, purpose: Purpose) -> None:
    """Neither anew, nor to who held it or had it before."""
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=0, gold_share=0.5, votes=2)
        expected = None if purpose == "label" else CLEAR
        add_tasks(session, made, new_tasks(2, purpose=purpose, expected=expected), now=NOW)
        held = None
        while held is None:  # gold is drawn by a die
            held = next(iter(lease(session, made, ann, count=1, now=NOW)), None)
        withdraw(session, made, 1)
        for _ in range(20):
            assert lease(session, made, ann, count=5, now=NOW) == lease(session, made, bob, count=5, now=NOW) == []
        assert (left_for(session, made, ann).count, left_for(session, made, bob).count) == (0, 0)
        give_back(session, ann, held.id)
        session.expire_all()
        assert lease(session, made, ann, count=5, now=NOW) == []
        with pytest.raises(Refused, match="nobody is asked about it"):
            renew(session, ann, held.id, now=NOW)
        set_withdrawn(session, made, 1, False, now=NOW)
        session.expire_all()
        assert renew(session, ann, held.id, now=NOW).state == "leased"
        assert_books_balance(session)


def test_no_hidden_repeat_is_of_what_was_withdrawn(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=1, repeat_share=0.5)
        add_tasks(session, made, new_tasks(REPEAT_AFTER + 40, round=2), now=NOW + 1)
        first, *others = tasks_of(session, made)
        for task in (first, *others[:REPEAT_AFTER]):
            answered(session, made, ann, task, CLEAR)
        withdraw(session, made, first.id)
        lent = []
        for turn in range(20):
            (one,) = lease(session, made, ann, count=1, now=NOW)
            lent.append(one.task_id)
            judge(session, ann, f"{turn}", one.id, FIRST, now=NOW)
        assert first.id not in lent


def test_what_somebody_holds_is_taken_late_or_not_and_corrected(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1, votes=2)
        held = [lease(session, made, who, count=1, now=NOW)[0].id for who in (ann, bob)]
        withdraw(session, made, 1)
        assert renew(session, ann, held[0], now=NOW + 60).expires_at == NOW + 60 + HALF_AN_HOUR
        judge(session, ann, "in time", held[0], FIRST, now=NOW + 60)
        assert release_lapsed(session, now=NOW + HALF_AN_HOUR) == 1
        judge(session, bob, "late", held[1], FIRST, now=NOW + HALF_AN_HOUR)
        judge(session, bob, "corrected", held[1], Said("answer", {"best": 1, "strength": "clear"}), now=NOW)
        assert_books_balance(session)
        assert progress(session, made).votes == 0
        set_withdrawn(session, made, 1, False, now=NOW)
        assert (progress(session, made).votes, progress(session, made).complete) == (2, 1)


def test_what_is_withdrawn_counts_nowhere_and_comes_with_everything(database: Database, tmp_path: Path) -> None:
    """What is told of a project is what was told before the wrong tasks came, but for the export of everything."""
    with database.writing() as session:
        users = people(session, "ann", "bob")
        made = project(session, tasks=4, votes=2)
        for number, task in enumerate(tasks_of(session, made)):
            for user in users:
                best = int(number == 0 and user is users[0])
                answered(session, made, user, task, {"best": best, "strength": "clear"}, comment="hm")
        number = made.id
    before = told(database, number, tmp_path)
    with database.writing() as session:
        made, users = find_project(session, number), list(session.scalars(select(User).order_by(User.id)))
        add_tasks(session, made, new_tasks(3, round=2), now=NOW + 1)
        add_tasks(session, made, new_tasks(2, purpose="gold", expected=CLEAR), now=NOW + 1)
        for task in tasks_of(session, made)[4:]:
            for user in users:
                answered(session, made, user, task, {"best": 1, "strength": "clear"}, comment="odd", at=NOW + 9**6)
    assert_nothing_alike(before, told(database, number, tmp_path))
    with database.writing() as session:
        made = find_project(session, number)
        for one in imports(session, made)[:2]:
            withdraw(session, made, one.number)
    assert told(database, number, tmp_path) == before

    out = tmp_path / "all.jsonl"
    with database.reading() as session:
        made = find_project(session, number)
        export_files(session, made, {"judgements": out}, Wanted(everything=True))
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["task"] for row in rows if row.get("withdrawn")] == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
        assert len(rows) == 8 + 10
        assert session.scalar(select(func.count(Judgement.id))) == 18


def told(database: Database, number: int, folder: Path) -> dict[str, Any]:
    """All that is said of a project as a whole."""
    out = folder / "out.jsonl"
    audited = overview.audit_of(database, number)
    with database.snapshot() as session:
        made = find_project(session, number)
        export_files(session, made, {"judgements": out}, Wanted())
        return {
            "progress": progress(session, made),
            "rounds": progress_of_rounds(session, made),
            "known": known_answers(session, made),
            "by": overview.answers_by_person(session, made),
            "days": overview.answers_by_day(session, made),
            "remarks": overview.remarks(session, made),
            "quality": quality(session, made).people,
            "export": out.read_text(),
            "audit": (audited.findings, audited.figures),
            "standing": [judgement.id for _, judgement in standing(session, made)],
            "listed": numbers(find_tasks(session, made, Sought(), count=99)),
        }


def assert_nothing_alike(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert {name for name in before if before[name] == after[name]} == set()


def test_nobody_is_asked_first_about_what_was_withdrawn(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=2)
        add_tasks(session, made, new_tasks(1, round=2), now=NOW + 1)
        withdraw(session, made, 1)
        assert numbers(open_tasks(session, made)) == [3]


def test_settings_that_change_meanwhile_hold_for_what_is_put_back(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=2)
        withdraw(session, made, 1)
        change_settings(session, made, Settings(votes=3))
        set_withdrawn(session, made, 1, False, now=NOW)
        assert progress(session, made).wanted == 6


def test_what_was_withdrawn_is_put_in_again_mended(database: Database, tmp_path: Path) -> None:
    """Gold with the wrong answer, withdrawn and imported as it should have been: the right one counts, and is new."""
    file, clock = tmp_path / "gold.jsonl", count(NOW)

    def put(session: Session, made: Project, better: str, worse: str) -> tuple[int, int]:
        rows = [{"prompt": f"p{k}", "chosen": f"{better} {k}", "rejected": f"{worse} {k}"} for k in range(3)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with read_tasks(made, [DataConfig(path=str(file))], Meant("gold"), now=next(clock)) as read:
            added = put_tasks(session, made, read).added
        return added.new, added.known

    with database.writing() as session:
        made = project(session, tasks=0)
        assert put(session, made, "bad", "good") == (3, 0)
        assert put(session, made, "good", "bad") == (0, 3)
        withdraw(session, made, 1)
        assert put(session, made, "good", "bad") == (3, 0)
        assert put(session, made, "good", "bad") == (0, 3)
        for task in find_tasks(session, made, Sought("gold"), count=9):
            assert task.expected is not None
            assert task.responses[task.expected["best"]].text.startswith("good")
        assert [(one.number, one.tasks, one.withdrawn_at) for one in imports(session, made)] == [
            (4, 3, None),
            (1, 3, NOW),
        ]


def test_only_one_of_two_that_are_the_same_is_there(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=4)
        withdraw(session, made, 1)
        assert add_tasks(session, made, new_tasks(3)[1:], now=NOW + 1).new == 2
        with pytest.raises(Refused, match="2 of its tasks were put in again since"):
            set_withdrawn(session, made, 1, False, now=NOW)
        withdraw(session, made, 5)
        set_withdrawn(session, made, 1, False, now=NOW)
        session.expire_all()
        assert progress(session, made).tasks == 4
        assert add_tasks(session, made, new_tasks(4), now=NOW + 2).new == 0
        with pytest.raises(Refused, match="2 of its tasks were put in again since"):
            set_withdrawn(session, made, 5, False, now=NOW)
        assert [(one.number, one.tasks) for one in imports(session, made)] == [(5, 2), (1, 4)]


def test_who_is_lent_a_task_just_then_had_it_before_or_never_has_it(database: Database) -> None:
    with database.writing() as session:
        people(session, "ann", "bob")
        made = project(session, tasks=1, votes=2).id
    lent: list[str] = []

    def take(session: Session, name: str) -> None:
        user = session.scalars(select(User).where(User.name == name)).one()
        lent.extend(one.id for one in lease(session, find_project(session, made), user, count=1, now=NOW))

    def change(session: Session, withdrawn: bool) -> None:
        set_withdrawn(session, find_project(session, made), 1, withdrawn, now=NOW)

    meanwhile(database, lambda session: change(session, True), lambda session: take(session, "ann"))
    assert lent == []
    with database.writing() as session:
        change(session, False)
    meanwhile(database, lambda session: take(session, "ann"), lambda session: change(session, True))
    with database.writing() as session:
        take(session, "bob")
        (held,) = session.scalars(select(Assignment))
        assert [held.id] == lent
        judge(session, held_by_whom(session, held), "key", held.id, FIRST, now=NOW)
        assert_books_balance(session)


def test_what_lapsed_is_not_taken_up_again_while_it_is_withdrawn(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=1)
        number = made.id
        (one,) = lease(session, made, ann, count=1, now=NOW)
        give_back(session, ann, one.id)
    lent: list[Assignment] = []

    def take(session: Session) -> None:
        ann = session.scalars(select(User)).one()
        lent.extend(lease(session, find_project(session, number), ann, count=1, now=NOW))

    meanwhile(database, lambda session: set_withdrawn(session, find_project(session, number), 1, True, now=NOW), take)
    assert lent == []


def held_by_whom(session: Session, assignment: Assignment) -> User:
    return session.get_one(User, assignment.user_id)


def test_who_takes_back_what_lapsed_and_who_withdraws_it_do_not_wait_for_each_other(database: Database) -> None:
    """PostgreSQL would end one of the two: tasks are withdrawn in the order in which `release_lapsed` frees seats."""
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=5)
        number = made.id
        tasks = sorted(one.task_id for one in lease(session, made, ann, count=5, now=NOW))

    def free(session: Session, some: list[int]) -> None:
        for one in some:
            free_seat(session, one)

    meanwhile(
        database,
        lambda session: free(session, tasks[:1]),
        lambda session: set_withdrawn(session, find_project(session, number), 1, True, now=NOW),
        then=lambda session: free(session, tasks[1:]),
    )
    with database.writing() as session:
        assert {task.withdrawn_at for task in tasks_of(session, find_project(session, number))} == {NOW}


def test_who_judges_and_who_withdraws_do_not_wait_for_each_other(database: Database) -> None:
    """PostgreSQL holds the task's key for a judgement of it before its vote is counted."""
    with database.writing() as session:
        made = project(session, tasks=1).id

    def change(session: Session) -> None:
        set_withdrawn(session, find_project(session, made), 1, True, now=NOW)

    meanwhile(
        database,
        lambda session: session.execute(select(Task.id).with_for_update(read=True, key_share=True)),
        change,
        then=lambda session: session.execute(update(Task).values(votes=1)),
    )
    with database.reading() as session:
        (one,) = imports(session, find_project(session, made))
        assert (one.votes, one.withdrawn_at) == (1, NOW)


def test_tasks_are_found_by_what_they_are(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=3, votes=2)
        add_tasks(session, made, new_tasks(2, round=2), now=NOW + 1)
        add_tasks(session, made, new_tasks(1, purpose="gold", expected=CLEAR), now=NOW + 2)
        project(session, tasks=1)
        for user in (ann, bob):
            answered(session, made, user, tasks_of(session, made)[1], CLEAR)
        withdraw(session, made, 4)
        sought = {
            "all": Sought(),
            "labels": Sought("label"),
            "gold": Sought("gold"),
            "round": Sought(round=2),
            "open": Sought(state="open"),
            "complete": Sought(state="complete"),
            "withdrawn": Sought(state="withdrawn"),
            "withdrawn gold": Sought("gold", state="withdrawn"),
        }
        found = {words: numbers(find_tasks(session, made, one, count=9)) for words, one in sought.items()}
    assert found == {
        "all": [1, 2, 3, 6], "labels": [1, 2, 3], "gold": [6], "round": [], "open": [1, 3], "complete": [2],
        "withdrawn": [4, 5], "withdrawn gold": [],
    }  # fmt: skip


def test_pages_of_tasks_hold_each_once_in_either_order(database: Database) -> None:
    priorities = [0.5, 0.0, 1.0, 0.5, 0.0, 0.5, 1.0]
    with database.writing() as session:
        made = project(session, tasks=0, choice="uncertain")
        for number, priority in enumerate(priorities):
            add_tasks(session, made, new_tasks(1, round=number + 1, priority=priority), now=NOW)

        def pages(sought: Sought) -> list[list[int]]:
            found: list[list[int]] = []
            seen: dict[str, Any] = {}
            while page := find_tasks(session, made, sought, count=2, **seen):
                found.append(numbers(page))
                seen = {"after": page[-1].id} | ({"below": page[-1].priority} if sought.order == "priority" else {})
            return found

        assert pages(Sought()) == [[1, 2], [3, 4], [5, 6], [7]]
        assert pages(Sought(order="priority")) == [[3, 7], [1, 4], [6, 2], [5]]
        tasks_of(session, made)[6].priority = 0.2  # the last of the first page, which people have judged meanwhile
        session.flush()
        rest = find_tasks(session, made, Sought(order="priority"), count=9, after=7, below=1.0)
        assert numbers(rest) == [1, 4, 6, 7, 2, 5]
        with pytest.raises(Refused, match="give it with after"):
            find_tasks(session, made, Sought(order="priority"), count=9, after=7)
