"""Small worlds to test the store in: people, a project, tasks; and what must be so in each of them."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.leases import take_seat
from keel.feedback.projects import Settings, add_project
from keel.feedback.tables import Assignment, Judgement, Kind, Project, Task, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks

NOW = 1_000_000.0


def people(session: Session, *names: str) -> list[User]:
    """Annotators with passwords that nobody knows."""
    users = [User(name=name, role="annotator", password_hash="-", created_at=NOW) for name in names]
    session.add_all(users)
    session.flush()
    return users


def project(
    session: Session, kind: Kind = "compare", *, tasks: int = 3, responses: int = 2, **settings: Any
) -> Project:
    """A project with `tasks` tasks, called "prompt 0" with "response 0.0", "response 0.1" and so on."""
    made = add_project(session, f"{kind} of {tasks}", kind, Settings(**settings), now=NOW)
    add_tasks(session, made, new_tasks(tasks, responses), now=NOW)
    return made


def new_tasks(count: int, responses: int = 2, **more: Any) -> Sequence[NewTask]:
    return [
        NewTask(f"prompt {number}", [NewResponse(f"response {number}.{k}") for k in range(responses)], **more)
        for number in range(count)
    ]


def answered(
    session: Session, made: Project, user: User, task: Task, answer: Any, *, at: float = NOW, **more: Any
) -> Assignment:
    """What a person said of a task, by position whatever order it was shown in (`order`, or that of the task)."""
    occasion, verdict = more.pop("occasion", 0), more.pop("verdict", "answer")
    order = more.pop("order", list(range(len(task.responses))))
    assignment = Assignment(
        id=uuid.uuid4().hex,
        task=task,
        project_id=made.id,
        user_id=user.id,
        occasion=occasion,
        order=order,
        state="leased",
        leased_at=at,
        expires_at=at + 60,
    )
    session.add(assignment)
    session.flush()
    if occasion == 0:
        take_seat(session, task.id, even_if_full=True)
    shown = None if answer is None else _as_shown(answer, order)
    judge(session, user, uuid.uuid4().hex, assignment.id, Said(verdict, shown, **more), now=at)
    return assignment


def _as_shown(answer: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    shown = dict(answer)
    for name in ("ranks", "ratings"):
        if name in answer:
            shown[name] = [answer[name][position] for position in order]
    if answer.get("best") is not None:
        shown["best"] = list(order).index(answer["best"])
    return shown


def tasks_of(session: Session, made: Project) -> Sequence[Task]:
    """In the order in which they were put there."""
    return session.scalars(select(Task).where(Task.project_id == made.id).order_by(Task.id)).all()


def meanwhile(
    database: Database,
    first: Callable[[Session], object],
    second: Callable[[Session], object],
    then: Callable[[Session], object] = lambda session: None,
) -> None:
    """`second` in another thread while what `first` did is not committed yet; `then` ends that transaction."""
    failures: list[BaseException] = []

    def other() -> None:
        try:
            with database.writing() as session:
                second(session)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    with database.writing() as session:
        first(session)
        session.flush()
        thread.start()
        thread.join(0.3)  # time enough to be wrong
        then(session)
    thread.join()
    assert failures == []


def assert_books_balance(session: Session) -> None:
    """Seats, votes and what stands, counted from the assignments and from the log of judgements."""
    session.flush()
    session.expire_all()
    log: dict[str, Judgement] = {}
    for row in session.scalars(select(Judgement).order_by(Judgement.id)):
        log[row.assignment_id] = row
    seats: Counter[int] = Counter()
    votes: Counter[int] = Counter()
    for one in session.scalars(select(Assignment)):
        last = log.get(one.id)
        stands = last is not None and last.verdict != "withdrawn"
        assert one.judgement_id == (last.id if stands and last else None)
        assert (one.state == "done") == (stands and last is not None and last.verdict == "answer")
        if one.occasion == 0:
            seats[one.task_id] += one.task.purpose == "label" and one.state in ("leased", "done")
            votes[one.task_id] += one.state == "done"
    for task in session.scalars(select(Task)):
        assert (task.seats_taken, task.votes) == (seats[task.id], votes[task.id])
