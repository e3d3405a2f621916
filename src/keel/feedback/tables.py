"""Every table of the feedback database. Times are seconds since 1970 (UTC); secrets are kept as hashes alone."""

from __future__ import annotations

import unicodedata
from typing import Any, ClassVar, Literal

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, MetaData, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Role = Literal["admin", "annotator", "viewer"]
Kind = Literal["compare", "rank", "rate", "review"]
Choice = Literal["random", "disputed", "uncertain"]
Purpose = Literal["label", "gold", "practice"]
State = Literal["leased", "done", "released"]
Verdict = Literal["answer", "skip", "problem", "withdrawn"]


_OPEN = text("seats_taken < seats AND withdrawn_at IS NULL")


class Base(DeclarativeBase):
    """Constraints have names, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        list[int]: JSON,
        **dict.fromkeys((str, Role, Kind, Choice, Purpose, State, Verdict), Text),
    }


def name_key(name: str) -> str:
    """Equal for names that a reader would take for the same: Ana and ANA."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


class User(Base):
    """Somebody with an account. Removing one is `active = False`: what they said stays."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    name_key: Mapped[str] = mapped_column(
        unique=True, default=lambda context: name_key(context.get_current_parameters()["name"])
    )
    role: Mapped[Role]
    password_hash: Mapped[str]
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float]


class Invitation(Base):
    """A link that makes one account; the first admin's comes out of the terminal and was made by nobody."""

    __tablename__ = "invitations"

    id: Mapped[int] = mapped_column(primary_key=True)
    secret_hash: Mapped[str] = mapped_column(unique=True)
    role: Mapped[Role]
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[float]
    expires_at: Mapped[float]
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    """The account that was made with it; a link that has one is used up."""
    note: Mapped[str] = mapped_column(default="", server_default="")
    """Whom it is for, in the words of who made it."""


class Login(Base):
    """A browser that is signed in; its cookie carries the secret, signed."""

    __tablename__ = "logins"

    id: Mapped[int] = mapped_column(primary_key=True)
    secret_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]


class Token(Base):
    """A program's way in, with the rights of its user."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    secret_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    label: Mapped[str]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Secret(Base):
    """A key that the server signs with, made when it is first needed."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Project(Base):
    """What is judged, and how. `settings` holds a `projects.Settings`."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[Kind]
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    closed_at: Mapped[float | None]


class Task(Base):
    """A prompt and its responses, to be judged `seats` times. `digest` makes the same import the same task."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("project_id", "digest", name="uq_tasks_digest"),
        Index("ix_tasks_project", "project_id", "purpose"),
        Index(
            "ix_tasks_open", "project_id", "purpose", "priority", "shuffle", sqlite_where=_OPEN, postgresql_where=_OPEN
        ),
        CheckConstraint("seats_taken >= 0", name="seats_taken"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    digest: Mapped[str]
    purpose: Mapped[Purpose] = mapped_column(default="label")
    round: Mapped[int] = mapped_column(default=1)
    batch: Mapped[str | None] = mapped_column(index=True)
    """Names the tasks that a run published together and waits for."""
    policy_version: Mapped[str | None]
    prompt: Mapped[Any] = mapped_column(JSON)
    """A keel.schema Dialogue as JSON: a text, or a list of {"role", "content"}."""
    row: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The other columns of the row that it came from."""
    expected: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The right answer of a gold or practice task, as in `answers`."""
    seats: Mapped[int]
    seats_taken: Mapped[int] = mapped_column(default=0)
    votes: Mapped[int] = mapped_column(default=0)
    """Answers that stand, hidden repeats not counted."""
    priority: Mapped[float] = mapped_column(default=0.0)
    """What is judged first: the disagreement so far, or a reward model's doubt; higher comes first."""
    shuffle: Mapped[float]
    """In [0, 1): the order among equals."""
    created_at: Mapped[float]
    """The same for all tasks of one import."""
    withdrawn_at: Mapped[float | None]
    """Nobody is lent it any more and it counts nowhere; what was said of it stays."""

    responses: Mapped[list[Response]] = relationship(order_by="Response.position", lazy="selectin")


class Response(Base):
    """One of a task's responses. Who made it (`source`) is not shown to those who judge."""

    __tablename__ = "responses"
    __table_args__ = (UniqueConstraint("task_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    position: Mapped[int]
    text: Mapped[str]
    source: Mapped[str | None]
    extra: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What else is known of it: whether it ended, …"""


class Assignment(Base):
    """A person's work on a task. `order[k]` is the position of the response that is shown k-th."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "user_id", "occasion"),
        Index("ix_assignments_live", "state", "expires_at"),
        Index("ix_assignments_project", "project_id"),
        Index("ix_assignments_user", "user_id", "project_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    occasion: Mapped[int] = mapped_column(default=0)
    """1 is a hidden repeat of what this person judged before."""
    order: Mapped[list[int]]
    state: Mapped[State]
    leased_at: Mapped[float]
    expires_at: Mapped[float]
    judgement_id: Mapped[int | None]
    """The judgement that stands, if there is one: the last. (No foreign key: each table would have the other's.)"""

    task: Mapped[Task] = relationship(lazy="joined")
    project: Mapped[Project] = relationship()

    @property
    def sits(self) -> bool:
        """Whether it takes one of the task's seats: neither gold, practice nor a hidden repeat does."""
        return self.occasion == 0 and self.task.purpose == "label"


class Judgement(Base):
    """What a person said. Only ever added: a correction names the one that it `replaces`."""

    __tablename__ = "judgements"
    __table_args__ = (Index("ix_judgements_project", "project_id", "user_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Made by the client: the same judgement sent twice is one."""
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignments.id"), index=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    verdict: Mapped[Verdict]
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    criteria: Mapped[dict[str, Any]] = mapped_column(default=dict)
    comment: Mapped[str] = mapped_column(default="")
    duration: Mapped[float]
    """Seconds that the task was before the person's eyes, as the browser counts."""
    order: Mapped[list[int]]
    replaces: Mapped[int | None] = mapped_column(ForeignKey("judgements.id"))
    created_at: Mapped[float]

    assignment: Mapped[Assignment] = relationship()


STANDS = (Judgement.assignment_id == Assignment.id) & (Assignment.judgement_id == Judgement.id)
"""The condition that joins each assignment to the one of its judgements that counts.

`judgement_id` alone would do; with the foreign key beside it the database may start from either table.
"""
