"""Leases and judgements, on both databases; the bookkeeping is held against a count of the rows themselves."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from keel.errors import UserError
from keel.feedback import leases
from keel.feedback.database import Database
from keel.feedback.judgements import Said, answered_since, judge, said_by, standing
from keel.feedback.leases import REPEAT_AFTER, give_back, lease, left_for, release_lapsed, renew
from keel.feedback.projects import Settings, change_settings, close_project, find_project
from keel.feedback.refused import Refused
from keel.feedback.tables import Assignment, Base, Judgement, Project, Task, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks, progress
from tests.feedback.worlds import NOW, assert_books_balance, meanwhile, new_tasks, people, project

FIRST = Said("answer", {"best": 0, "strength": "clear"})
SECOND = Said("answer", {"best": 1, "strength": "clear"})
HALF_AN_HOUR = 30 * 60.0


def test_the_migrations_make_the_tables_as_they_are_declared(database: Database) -> None:
    with database.reading() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


@pytest.mark.parametrize("change", ["UPDATE judgements SET comment = 'x'", "DELETE FROM judgements"])
def test_nobody_changes_a_judgement(database: Database, change: str) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        (one,) = lease(session, project(session), ann, count=1, now=NOW)
        judge(session, ann, "key", one.id, FIRST, now=NOW)
    with pytest.raises(DBAPIError, match="only ever added"), database.writing() as session:
        session.execute(text(change))
    with database.reading() as session:
        assert session.scalar(select(func.count(Judgement.id))) == 1


def test_a_database_of_a_newer_keel_is_refused(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer Keel"):
        Database(database_url)


def test_the_same_tasks_are_added_once(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=3)
        added = add_tasks(session, made, [*new_tasks(4), *new_tasks(4)], now=NOW)
        assert (added.new, added.known) == (1, 7)
        assert add_tasks(session, made, new_tasks(1, round=2), now=NOW).new == 1
        assert session.scalar(select(func.count(Task.id))) == 5


def test_as_many_tasks_as_one_likes(database: Database) -> None:
    """They go in by the hundred; what one hundred has the next does not have again, and each has its responses."""
    with database.writing() as session:
        made = project(session, tasks=0)
        tasks = new_tasks(1203)
        added = add_tasks(session, made, [*tasks, *reversed(tasks)], now=NOW)
        assert (added.new, added.known) == (1203, 1203)
        kept = session.scalars(select(Task).order_by(Task.id)).all()
        assert [task.prompt for task in kept] == [task.prompt for task in tasks]
        assert [[one.text for one in task.responses] for task in kept] == [
            [one.text for one in task.responses] for task in tasks
        ]


@pytest.mark.parametrize(
    ("kind", "tasks", "says"),
    [
        ("compare", new_tasks(2, responses=3), "task 1: 3 responses; a compare project takes 2"),
        ("rank", new_tasks(1, responses=1), "takes 2 to 9"),
        ("compare", new_tasks(1, purpose="gold"), "needs its expected answer"),
        ("compare", new_tasks(1, purpose="gold", expected={"best": 5, "strength": "clear"}), "answer.best"),
        ("compare", new_tasks(1, row={"note": "a\x00"}), "NUL"),
        ("compare", new_tasks(1, row={"note": "\ud800"}), "surrogate"),
    ],
)
def test_a_task_that_cannot_be_judged_is_refused(database: Database, kind: Any, tasks: Any, says: str) -> None:
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        with pytest.raises(Refused, match=says):
            add_tasks(session, made, tasks, now=NOW)


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
        assert progress(session, made).votes == 2
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


def test_what_was_said_and_what_is_left_are_ones_own(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=5)
        add_tasks(session, made, new_tasks(2, purpose="gold", expected={"best": 0, "strength": "clear"}), now=NOW)
        one, two, three = lease(session, made, ann, count=3, now=NOW)
        assert (left_for(session, made, ann), left_for(session, made, bob)) == (5, 2)
        judge(session, ann, "a", one.id, FIRST, now=NOW + 1)
        judge(session, ann, "b", two.id, Said("skip"), now=NOW + 2)
        judge(session, ann, "c", three.id, FIRST, now=NOW + 3)
        judge(session, ann, "d", one.id, SECOND, now=NOW + 4)
        assert (left_for(session, made, ann), left_for(session, made, bob)) == (2, 3)
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
        assert (left_for(session, made, ann), answered_since(session, made, ann, 0)) == (3, 1)


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


def test_a_closed_project_lends_nothing_and_takes_what_is_under_way(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        close_project(made, now=NOW)
        with pytest.raises(Refused, match="closed"):
            lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, FIRST, now=NOW)
        assert progress(session, made).votes == 1


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


def test_a_higher_priority_comes_first(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=0, choice="uncertain")
        for priority in (0.1, 0.9, 0.5):
            add_tasks(session, made, new_tasks(1, round=int(10 * priority), priority=priority), now=NOW)
        assert [one.task.priority for one in lease(session, made, ann, count=3, now=NOW)] == [0.9, 0.5, 0.1]


def test_more_votes_open_what_was_complete(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, FIRST, now=NOW)
        assert lease(session, made, bob, count=1, now=NOW) == []
        change_settings(session, made, Settings(votes=2))
        session.expire_all()
        assert len(lease(session, made, bob, count=1, now=NOW)) == 1


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


def test_a_retry_is_the_same_judgement_under_other_settings_too(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "rate", tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        said = Said("answer", {"ratings": [7, 6]})
        first = judge(session, ann, "key", one.id, said, now=NOW)
        change_settings(session, made, Settings(scale=(1, 5)))
        assert judge(session, ann, "key", one.id, said, now=NOW) is first


def test_a_pair_the_other_way_round_is_the_same_task(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=0)
        pairs = [("a", "b"), ("b ", "a"), ("a", "c")]
        tasks = [NewTask("prompt", [NewResponse(text) for text in pair]) for pair in pairs]
        assert add_tasks(session, made, tasks, now=NOW).new == 2


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


def test_another_choice_forgets_what_came_first(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=0, choice="uncertain")
        add_tasks(session, made, new_tasks(1, priority=0.9), now=NOW)
        change_settings(session, made, Settings(choice="random"))
        add_tasks(session, made, new_tasks(1, round=2, priority=0.9), now=NOW)
        session.expire_all()
        assert session.scalars(select(Task.priority)).all() == [0.0, 0.0]


def test_one_vote_disputes_nothing() -> None:
    with pytest.raises(ValidationError, match="votes: 2"):
        Settings(choice="disputed")


def test_gold_is_not_told_by_how_much_is_left(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        assert left_for(session, project(session, tasks=13, gold_share=0.1), ann) == 20
        assert left_for(session, project(session, tasks=14), ann) == 14


def progress_of_seats(session: Session) -> int:
    return sum(session.scalars(select(Task.seats_taken)).all())


def test_a_project_that_is_not_there_is_told_with_those_that_are(database: Database) -> None:
    with database.writing() as session:
        project(session, tasks=0)
        with pytest.raises(Refused, match="there are compare of 0"):
            find_project(session, "compare")
        assert isinstance(find_project(session, 1), Project)
