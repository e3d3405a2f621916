"""Who is lent which task, one after the other and many at once; every seat is taken once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from keel.feedback import leases
from keel.feedback.database import Database
from keel.feedback.judgements import Said, answered_since, judge, standing
from keel.feedback.leases import REPEAT_AFTER, give_back, lease, left_for, release_lapsed, renew
from keel.feedback.projects import find_project
from keel.feedback.refused import Refused
from keel.feedback.tables import Assignment, Task, User
from keel.feedback.tasks import add_tasks, progress
from tests.feedback.worlds import NOW, assert_books_balance, meanwhile, new_tasks, people, project

FIRST = Said("answer", {"best": 0, "strength": "clear"})
SECOND = Said("answer", {"best": 1, "strength": "clear"})
HALF_AN_HOUR = 30 * 60.0


def test_nobody_gets_a_task_twice_and_each_task_gets_its_votes(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=4, votes=2)
        annotators = people(session, "ann", "bob", "cleo")
        had: list[tuple[str, str]] = []
        for turn in range(20):
            who = annotators[turn % 3]
            for one in lease(session, made, who, count=1, now=NOW + turn):
                had.append((who.name, one.task.prompt))
                judge(session, who, f"{turn}", one.id, FIRST, now=NOW + turn)
        assert len(had) == len(set(had)) == 8
        assert set(Counter(prompt for _, prompt in had).values()) == {2}
        done = progress(session, made)
        assert (done.tasks, done.complete, done.votes, done.wanted) == (4, 4, 8, 8)


def test_a_lapsed_lease_goes_to_another_and_a_late_judgement_is_kept(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1)
        (late,) = lease(session, made, ann, count=1, now=NOW)
        assert lease(session, made, bob, count=1, now=NOW) == []
        assert release_lapsed(session, now=NOW + HALF_AN_HOUR - 1) == 0
        assert release_lapsed(session, now=NOW + HALF_AN_HOUR) == 1
        (taken,) = lease(session, made, bob, count=1, now=NOW + HALF_AN_HOUR)
        assert taken.task_id == late.task_id
        assert lease(session, made, ann, count=1, now=NOW + HALF_AN_HOUR) == []  # its seat is bob's now
        judge(session, ann, "late", late.id, FIRST, now=NOW + 2 * HALF_AN_HOUR)
        judge(session, bob, "in time", taken.id, SECOND, now=NOW + HALF_AN_HOUR + 1)
        assert len(standing(session, made)) == 2
        assert_books_balance(session)


def test_who_comes_back_goes_on_with_what_lapsed(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=3)
        (before,) = lease(session, made, ann, count=1, now=NOW)
        give_back(session, ann, before.id)
        assert progress_of_seats(session) == 0
        (after,) = lease(session, made, ann, count=1, now=NOW + 5)
        assert (after.id, after.order, after.expires_at) == (before.id, before.order, NOW + 5 + HALF_AN_HOUR)


def test_a_lease_is_held_on_to_until_somebody_else_has_the_task(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        assert renew(session, ann, one.id, now=NOW + 60).expires_at == NOW + 60 + HALF_AN_HOUR
        with pytest.raises(Refused, match="no such assignment"):
            renew(session, bob, one.id, now=NOW)
        give_back(session, ann, one.id)
        assert renew(session, ann, one.id, now=NOW + 90).state == "leased"
        assert progress_of_seats(session) == 1
        give_back(session, ann, one.id)
        (taken,) = lease(session, made, bob, count=1, now=NOW + 90)
        with pytest.raises(Refused, match="somebody else has it"):
            renew(session, ann, one.id, now=NOW + 90)
        judge(session, bob, "key", taken.id, FIRST, now=NOW + 95)
        with pytest.raises(Refused, match="judged"):
            renew(session, bob, taken.id, now=NOW + 99)
        assert_books_balance(session)


def test_practice_comes_first_and_gold_and_repeats_are_hidden_among_the_tasks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_chance", random.Random(0))
    right = {"best": 0, "strength": "clear"}
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=400, gold_share=0.2, repeat_share=0.1)
        for purpose, count in (("practice", 2), ("gold", 100)):
            extra = new_tasks(count, purpose=purpose, expected=right)
            add_tasks(session, made, extra, now=NOW)
        kinds = []
        judged: dict[int, int] = {}
        for turn in range(300):
            (one,) = lease(session, made, ann, count=1, now=NOW + turn)
            kinds.append("repeat" if one.occasion else one.task.purpose)
            if one.occasion:
                assert turn - judged[one.task_id] > REPEAT_AFTER
            else:
                judged[one.task_id] = turn
            judge(session, ann, f"{turn}", one.id, FIRST, now=NOW + turn)
        assert kinds[:2] == ["practice", "practice"]
        shares = Counter(kinds[2:])
        assert 30 <= shares["gold"] <= 90
        assert 6 <= shares["repeat"] <= 54
        assert shares["practice"] == 0
        assert progress(session, made).votes == shares["label"]  # a repeat is no vote
        assert answered_since(session, made, ann, 0) == 300 - 2  # nor is practice what was judged
        assert_books_balance(session)


def test_both_orders_are_shown_as_often(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_chance", random.Random(0))
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=200)
        first = 0
        for turn in range(200):
            (one,) = lease(session, made, ann, count=1, now=NOW)
            first += one.order[0] == 0
            judge(session, ann, f"{turn}", one.id, FIRST, now=NOW)
        assert 60 <= first <= 140


def test_a_higher_priority_comes_first(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=0, choice="uncertain")
        for priority in (0.1, 0.9, 0.5):
            add_tasks(session, made, new_tasks(1, round=int(10 * priority), priority=priority), now=NOW)
        assert [one.task.priority for one in lease(session, made, ann, count=3, now=NOW)] == [0.9, 0.5, 0.1]


def test_many_people_at_once_get_every_seat_once(database: Database) -> None:
    """Twelve threads, each a person of its own, until nothing is left: no task has more votes than it asked for."""
    with database.writing() as session:
        names = [user.name for user in people(session, *(f"person {number}" for number in range(12)))]
        made = project(session, tasks=40, votes=3)
        where = made.name
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while True:
                with database.writing() as session:
                    me = session.scalars(select(User).where(User.name == name)).one()
                    held = [one.id for one in lease(session, find_project(session, where), me, count=2, now=NOW)]
                if not held:
                    return
                for one in held:
                    with database.writing() as session:
                        me = session.scalars(select(User).where(User.name == name)).one()
                        judge(session, me, f"{name} {one}", one, FIRST, now=NOW)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.reading() as session:
        done = progress(session, find_project(session, where))
        assert (done.complete, done.votes) == (40, 120)
        assert_books_balance(session)


def test_people_who_come_back_to_the_same_tasks_at_once_all_get_them(database: Database) -> None:
    """Each held them in another order, and all have lapsed: none waits for a seat that one who waits for theirs has."""
    rng = random.Random(0)
    with database.writing() as session:
        names = [user.name for user in people(session, *(f"person {number}" for number in range(6)))]
        where = project(session, tasks=5, votes=6).name

    def come_back(name: str) -> int:
        with database.writing() as session:
            me = session.scalars(select(User).where(User.name == name)).one()
            return len(lease(session, find_project(session, where), me, count=5, now=NOW))

    with ThreadPoolExecutor(len(names)) as pool:
        assert [come_back(name) for name in names] == [5] * len(names)
        for _ in range(4):
            with database.writing() as session:
                for one in session.scalars(select(Assignment)):
                    one.state, one.leased_at = "released", rng.random()
                session.execute(update(Task).values(seats_taken=0))
            assert list(pool.map(come_back, names)) == [5] * len(names)


def one_seat_lapsed(database: Database, votes: int) -> tuple[int, str]:
    """The project of one task, and the assignment that ann held and gave back."""
    with database.writing() as session:
        ann, _ = people(session, "ann", "bob")
        made = project(session, tasks=1, votes=votes)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        give_back(session, ann, one.id)
        return made.id, one.id


def next_of(session: Session, name: str, project_id: int, now: float = NOW) -> list[Assignment]:
    user = session.scalars(select(User).where(User.name == name)).one()
    return lease(session, find_project(session, project_id), user, count=1, now=now)


def user_of(session: Session, name: str) -> User:
    return session.scalars(select(User).where(User.name == name)).one()


def test_a_late_answer_and_a_lease_at_once_are_one_vote(database: Database) -> None:
    where, held = one_seat_lapsed(database, votes=2)
    meanwhile(
        database,
        lambda session: judge(session, user_of(session, "ann"), "late", held, FIRST, now=NOW),
        lambda session: next_of(session, "ann", where),
    )
    with database.writing() as session:
        assert_books_balance(session)
        assert next_of(session, "ann", where) == []
        assert len(next_of(session, "bob", where)) == 1


def test_a_renewal_and_a_lease_at_once_take_one_seat(database: Database) -> None:
    where, held = one_seat_lapsed(database, votes=2)
    meanwhile(
        database,
        lambda session: renew(session, user_of(session, "ann"), held, now=NOW),
        lambda session: next_of(session, "ann", where),
    )
    with database.writing() as session:
        assert_books_balance(session)
        assert len(next_of(session, "bob", where)) == 1


def test_what_is_just_taken_back_is_nobodys_to_hold(database: Database) -> None:
    where, _ = one_seat_lapsed(database, votes=1)
    later = NOW + HALF_AN_HOUR
    with database.writing() as session:
        next_of(session, "ann", where)
    lent: list[str] = []
    meanwhile(
        database,
        lambda session: release_lapsed(session, now=later),
        lambda session: lent.extend(one.id for one in next_of(session, "ann", where, now=later)),
    )
    with database.writing() as session:
        assert_books_balance(session)
        assert [session.get_one(Assignment, one).state for one in lent] == ["leased"] * len(lent)
        assert len(next_of(session, "bob", where, now=later)) + len(lent) == 1


def test_what_was_given_back_for_good_costs_nothing(database: Database) -> None:
    """A statement each for tasks that others took would stop everybody."""
    statements: list[str] = []
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=40)
        for turn in range(40):
            (one,) = lease(session, made, ann, count=1, now=NOW)
            give_back(session, ann, one.id)
            (taken,) = lease(session, made, bob, count=1, now=NOW)
            judge(session, bob, f"{turn}", taken.id, FIRST, now=NOW)
        event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert lease(session, made, ann, count=1, now=NOW) == []
    assert len(statements) < 12


def test_gold_is_not_told_by_how_much_is_left(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        told = {
            tasks: left_for(session, project(session, tasks=tasks, gold_share=0.1), ann).in_words
            for tasks in (0, 1, 10, 11, 13, 20, 21)
        }
        assert left_for(session, project(session, tasks=14), ann).in_words == "14 left for you"
    assert told == {
        0: "0 left for you",
        1: "a few left for you",
        10: "a few left for you",
        11: "more than 10 left for you",
        13: "more than 10 left for you",
        20: "more than 10 left for you",
        21: "more than 20 left for you",
    }


def test_what_is_left_is_counted_up_to_a_number_and_said_to_be_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MOST_COUNTED", 4)
    with database.writing() as session:
        (ann,) = people(session, "ann")
        for tasks, told in ((3, "3 left"), (4, "4 left"), (5, "more than 4 left"), (9, "more than 4 left")):
            assert left_for(session, project(session, tasks=tasks), ann).in_words == f"{told} for you"


def progress_of_seats(session: Session) -> int:
    return sum(session.scalars(select(Task.seats_taken)).all())
