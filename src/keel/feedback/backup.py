"""The whole database in one compressed file, and back: from either kind of database into either kind.

JSON lines in gzip: first what it is, then every row as [table, row], last how many rows there are of each table and the
SHA-256 of all lines before.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, MetaData, Table, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from keel.data.files import lines_of, opened
from keel.data.write import in_one_step
from keel.errors import UserError, first_line
from keel.feedback.database import Database, revisions, upgrade
from keel.feedback.tables import Base

_FORMAT = "keel feedback backup"
_VERSION = 1
_AT_ONCE = 500
_ONLY_MINE = 0o600  # there are password hashes in it, and what cookies are signed with


def backup(database: Database, out: Path, *, now: float) -> Mapping[str, int]:
    """Write everything as it is at one moment, whoever works on; returns the number of rows of each table."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    with (
        database.snapshot() as session,
        in_one_step(out, mode=_ONLY_MINE) as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as zipped,
    ):

        def write(value: object) -> None:
            line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            zipped.write(line)

        time = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        write({"format": _FORMAT, "version": _VERSION, "schema": _schema(session), "time": time})
        for table in Base.metadata.sorted_tables:
            rows = session.execute(select(table).order_by(*table.primary_key).execution_options(yield_per=_AT_ONCE))
            for row in rows:
                counts[table.name] += 1
                write([table.name, row._asdict()])
        write({"rows": dict(counts), "sha256": digest.hexdigest()})
    return counts


def restore(database: Database, source: Path) -> Mapping[str, int]:
    """Put a backup into an empty database, in one transaction; ids stay. Returns the number of rows of each table.

    One of an older schema goes into tables of that schema, which are then upgraded. Raises UserError where the database
    holds anything, or the file is no whole backup of a schema that is known.
    """
    with database.writing() as session:
        for table in Base.metadata.sorted_tables:
            if session.execute(select(table).limit(1)).first() is not None:
                raise UserError(f"the database {database} is not empty ({table.name}); restore into a new one")
        counts: Counter[str] = Counter()
        with opened(source) as file:
            lines = lines_of(file)
            first, schema = _check_head(source, next(lines, None))
            tables = _tables(session, schema)
            try:
                for name, rows in groupby(_rows(source, first, lines, tables), key=lambda one: one[0]):
                    while batch := [row for _, row in islice(rows, _AT_ONCE)]:
                        session.execute(insert(tables[name]), batch)
                        counts[name] += len(batch)
            except (SQLAlchemyError, OverflowError) as error:
                raise UserError(f"{source} does not fit the database ({first_line(error)})") from None
        if tables is not Base.metadata.tables:
            upgrade(session.connection())
        if not database.embedded:
            _count_on(session)
    return counts


def _schema(session: Session) -> str:
    return str(session.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def _tables(session: Session, schema: str) -> Mapping[str, Table]:
    """That schema's tables by name; where it is an older one, its tables are made in place of the empty ones."""
    if schema == _schema(session):
        return Base.metadata.tables
    connection = session.connection()
    ours = {"alembic_version", *Base.metadata.tables}  # there may be others'
    empty, there = MetaData(), MetaData()
    empty.reflect(connection, only=lambda name, _: name in ours)
    empty.drop_all(connection)
    upgrade(connection, schema)
    there.reflect(connection, only=lambda name, _: name in ours)
    for column in (column for table in there.sorted_tables for column in table.columns):
        if isinstance(column.type, JSON):
            column.type.none_as_null = True  # as where a table of ours has a null
    return {name: table for name, table in there.tables.items() if name in Base.metadata.tables}


def _rows(
    source: Path, first: bytes, lines: Iterator[bytes | None], tables: Mapping[str, Table]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) of a backup's lines. Raises UserError, at the latest after the last one, where it is not whole."""
    digest = hashlib.sha256(first)
    counts: Counter[str] = Counter()
    for line in lines:
        match _parsed(line):
            case [str(name), dict(row)] if name in tables and line is not None:
                counts[name] += 1
                digest.update(line)
                yield name, row
            case {"rows": rows, "sha256": sha256}:
                if rows != counts or sha256 != digest.hexdigest() or next(lines, None) is not None:
                    break
                return
            case _:
                break
    raise UserError(f"{source} is damaged, or not whole; take another backup")


def _check_head(source: Path, line: bytes | None) -> tuple[bytes, str]:
    """The line and the schema that it names."""
    head = _parsed(line)
    if line is None or not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise UserError(f"{source} is no backup of a feedback database; `keel feedback backup` writes one")
    schema = head.get("schema")
    if head.get("version") != _VERSION or schema not in revisions():
        raise UserError(f"{source} was made by a newer Keel (its schema is {schema}); update Keel, then restore it")
    return line, str(schema)


def _parsed(line: bytes | None) -> Any:
    try:
        return None if line is None else json.loads(line)
    except (ValueError, RecursionError):
        return None


def _count_on(session: Session) -> None:
    """Let new rows be numbered after the restored ones: PostgreSQL's sequences know nothing of rows with given ids."""
    for table in Base.metadata.sorted_tables:
        if "id" in table.c and table.c.id.type.python_type is int:
            largest = session.scalar(select(func.max(table.c.id)))
            if largest is not None:
                session.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), largest)))
