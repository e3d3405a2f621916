"""A feedback database by its URL: sessions that read, sessions that write, and the newest schema."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from keel.errors import UserError, first_line
from keel.feedback.tables import Base

_BUSY_SECONDS = 30.0  # that SQLite waits for another process, and that writers of one process wait for each other
AT_ONCE = 4  # sessions at work; more would only compete for the interpreter
_CONNECTIONS = 4 * AT_ONCE  # for snapshots too
_WRITES = "keel_writes"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
_ONLY_MINE = 0o600  # there are password hashes in it, and what cookies are signed with
_MENDS = {
    "SQLITE_CANTOPEN": "; name a file in a folder that is there and may be written to",
    "SQLITE_READONLY": "; name a file that may be written to, in a folder that may be too",
    "SQLITE_FULL": "; make room, then start it again: what was saved is there",
}
_ONE_UPGRADE = 0x6B65656C  # the key of PostgreSQL's advisory lock on the schema: any number does that others do not use


class Busy(Exception):
    """Another writer has kept the database for too long."""


class Database:
    """`with database.writing() as session:` is one transaction, committed at its end and rolled back by an error.

    A session must not be opened within another of the same thread.
    """

    def __init__(self, url: str | Path) -> None:
        """A path is an SQLite file, made where there is none. Raises UserError where the database cannot be had."""
        self.url = _url_of(url)
        self.embedded = self.url.get_backend_name() == "sqlite"
        self._writers = threading.Lock()
        self._workers = threading.BoundedSemaphore(AT_ONCE)
        self._made = self.embedded and _make_private(self.url.database or "")
        self._engine = _engine_of(self.url, embedded=self.embedded)
        try:
            _upgrade(self._engine)
        except (DBAPIError, TypeError, ValueError) as error:  # the last two of options that the driver does not know
            self.close()
            raise UserError(f"the feedback database {self} cannot be opened: {self._in_words(error)}") from None
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        """A file's path, or the URL without its password and its options, which may hold one too."""
        return self.url.database or "" if self.embedded else self.url.set(query={}).render_as_string()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading: nothing that it changes is committed."""
        with self._workers, Session(self._engine) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """As `reading`, but all queries see the database as it was at one moment, whoever writes meanwhile.

        It is none of the AT_ONCE sessions, so that a long one keeps nobody waiting.
        """
        level = {} if self.embedded else {"isolation_level": "REPEATABLE READ"}  # SQLite's transactions are that anyway
        with Session(self._engine.execution_options(**level)) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is committed at the end; on SQLite writers go one after the other.

        Raises Busy where one of those before has not ended for long.
        """
        engine = self._engine.execution_options(**{_WRITES: True})
        with self._turn(), self._workers, Session(engine) as session, session.begin():
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One that waits for its turn is not yet one of the AT_ONCE sessions: readers go on meanwhile."""
        if not self.embedded:
            yield
        elif self._writers.acquire(timeout=_BUSY_SECONDS):
            try:
                yield
            finally:
                self._writers.release()
        else:
            raise Busy

    @contextmanager
    def for_the_terminal(self) -> Iterator[None]:
        """Turns errors of the database itself, such as a full disk, into a UserError."""
        try:
            yield
        except DBAPIError as error:
            raise UserError(f"the feedback database {self} cannot be used: {self._in_words(error)}") from None

    def close(self) -> None:
        self._engine.dispose()

    def discard(self) -> None:
        """Close it, and remove the file if it was made by this object, is empty and is open nowhere else."""
        self.close()
        if self._made:
            _remove_empty(Path(str(self.url.database)))

    def _in_words(self, error: Exception) -> str:
        """The error's first line without the password, and what can be done about it."""
        cause = getattr(error, "orig", None) or error
        name = str(getattr(cause, "sqlite_errorname", ""))
        mend = next((words for kind, words in _MENDS.items() if name.startswith(kind)), "")
        return first_line(cause).replace(self.url.password or "\n", "***") + mend


def _url_of(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UserError(
            f"{url.partition('://')[0]}://… is no database; give a file, or postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise UserError(f"feedback is kept in SQLite or PostgreSQL, not in {backend}")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"{url} names no file in which feedback is kept; give one")
    return parsed.set(drivername=_DRIVERS[backend])


def _make_private(file: str) -> bool:
    """Make an empty file that only its owner may read, unless there is one; returns whether it was made.

    SQLite gives the file's mode to those that it puts beside it.
    """
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _ONLY_MINE))
    except (OSError, ValueError):  # it is there, or SQLite will say why it cannot be
        return False
    return True


def _remove_empty(file: Path) -> None:
    """Remove a database that holds no row; it stays where others have it open, for SQLite then cannot leave WAL mode.

    Outside of WAL mode nobody can lose what they write: SQLite refuses to write to a file that was removed meanwhile.
    """
    with (
        suppress(sqlite3.Error, OSError),
        closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        if not any(connection.execute(f"SELECT 1 FROM {name}").fetchone() for name in Base.metadata.tables):
            file.unlink()


def _engine_of(url: URL, *, embedded: bool) -> Engine:
    if not embedded:
        return sqlalchemy.create_engine(url, pool_size=_CONNECTIONS, max_overflow=0, pool_pre_ping=True)
    engine = sqlalchemy.create_engine(
        url, pool_size=_CONNECTIONS, max_overflow=0, connect_args={"timeout": _BUSY_SECONDS}
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, record: ConnectionPoolEntry) -> None:
    """WAL, every commit synced to the disk, foreign keys enforced; and `_begin` alone begins transactions."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sqlalchemy.Connection) -> None:
    """A writer takes the write lock at once: SQLite may refuse it to a transaction that has already read."""
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(engine: Engine) -> None:
    """Bring the schema up to date. Raises UserError where the database was made by a newer Keel."""
    known = revisions()
    with engine.execution_options(**{_WRITES: True}).begin() as connection:
        if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
            connection.execute(select(func.pg_advisory_xact_lock(_ONE_UPGRADE)))
        here = MigrationContext.configure(connection).get_current_revision()
        if here is not None and here not in known:
            raise UserError(f"the feedback database was made by a newer Keel (its schema is {here}); update Keel")
        if here != known[0]:
            upgrade(connection)


def revisions() -> list[str]:
    """Every schema that this Keel knows, the newest first."""
    return [one.revision for one in ScriptDirectory.from_config(_migrations()).walk_revisions()]


def upgrade(connection: sqlalchemy.Connection, revision: str = "head") -> None:
    """Migrate to a later revision, from the schema that is there or from nothing."""
    config = _migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
