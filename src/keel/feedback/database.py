"""A feedback database by its URL: sessions that read, sessions that write, and the newest schema."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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

_BUSY_SECONDS = 30.0  # that SQLite waits for another process; within one, writers wait for a lock
_CONNECTIONS = 48  # as many requests as are served at a time, and some
_WRITERS = 4  # at a time, on PostgreSQL: more only take the interpreter from each other
_WRITES = "keel_writes"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
_ONLY_MINE = 0o600  # there are password hashes in it, and what cookies are signed with
_ONE_UPGRADE = 0x6B65656C  # the number of PostgreSQL's lock on the schema, which is as good as any other


class Database:
    """`with database.writing() as session:` is one transaction, committed at its end and rolled back by an error."""

    def __init__(self, url: str | Path) -> None:
        """A path is an SQLite file, made where there is none. Raises UserError where the database cannot be had."""
        self.url = _url_of(url)
        self.embedded = self.url.get_backend_name() == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Semaphore(1 if self.embedded else _WRITERS)
        if self.embedded:
            _make_private(self.url.database or "")
        self._engine = _engine_of(self.url, embedded=self.embedded)
        try:
            _upgrade(self._engine)
        except (DBAPIError, TypeError, ValueError) as error:  # the last two of options that the driver does not know
            self.close()
            said = first_line(error).replace(self.url.password or "\n", "***")
            raise UserError(f"the feedback database {self} cannot be opened: {said}") from None
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        """Without its password, which may stand among its options too."""
        return self.url.database or "" if self.embedded else self.url.set(query={}).render_as_string()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session whose changes are forgotten."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """`reading` everything as it is at one moment, however many queries that takes and whoever writes meanwhile."""
        level = {} if self.embedded else {"isolation_level": "REPEATABLE READ"}  # SQLite's transactions are that anyway
        with Session(self._engine.execution_options(**level)) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is committed at the end; on SQLite writers go one after the other, else a few at a time."""
        with self._turn, Session(self._engine.execution_options(**{_WRITES: True})) as session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()


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


def _make_private(file: str) -> None:
    """Where there is none: an empty file for its owner alone, whose mode SQLite gives to those that it puts beside."""
    with suppress(OSError, ValueError):  # it is there, or SQLite will say why it cannot be
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _ONLY_MINE))


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
    """WAL, every commit on the disk, foreign keys that hold; and no transactions but those that are begun below."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sqlalchemy.Connection) -> None:
    """A writer says so at once: a reader that turns writer in the midst may be refused."""
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(engine: Engine) -> None:
    """The newest schema. Raises UserError where the database was made by a newer Keel."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    with engine.execution_options(**{_WRITES: True}).begin() as connection:
        if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
            connection.execute(select(func.pg_advisory_xact_lock(_ONE_UPGRADE)))
        here = MigrationContext.configure(connection).get_current_revision()
        if here is not None and here not in {one.revision for one in script.walk_revisions()}:
            raise UserError(f"the feedback database was made by a newer Keel (its schema is {here}); update Keel")
        if here != script.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
