"""A backup of either kind of database fills either kind again, row for row; a damaged one fills none."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import delete, func, null, select, text
from sqlalchemy.exc import DBAPIError

from keel.errors import UserError
from keel.feedback.backup import backup, restore
from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.leases import lease
from keel.feedback.projects import find_project
from keel.feedback.tables import Base, Invitation, Judgement, Login, Secret, Token, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks, progress
from tests.databases import Postgres
from tests.feedback.worlds import NOW, people, project


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Where the backup goes."""
    if request.param == "sqlite":
        made = Database(tmp_path / "other.db")
    else:
        server: Postgres = request.getfixturevalue("postgres")
        made = Database(server.database())
    yield made
    made.close()


def fill(database: Database, seed: int) -> None:
    """People, three projects, odd texts, and judgements by a random walk."""
    rng = random.Random(seed)
    with database.writing() as session:
        users = people(session, "ann", "bob", "Ωμέγα")
        ann = users[0]
        session.add_all(
            [
                Secret(name="signing", value="s"),
                Invitation(secret_hash="i", role="viewer", created_by=ann.id, created_at=NOW, expires_at=NOW + 0.1),
                Login(secret_hash="l", user_id=ann.id, created_at=NOW, expires_at=1e300),
                Token(secret_hash="t", user_id=ann.id, label="l", created_at=NOW, revoked_at=None),
            ]
        )
        made = project(session, tasks=5, votes=2, choice="disputed")
        project(session, "rank", responses=3)
        odd = NewTask(
            "\u2028\U0001f600\x01", [NewResponse("\r\n", "ppo", {"ended": True}), NewResponse("")], row={"a": [None]}
        )
        add_tasks(session, made, [odd], now=NOW)
        for step in range(40):
            who = rng.choice(users)
            for one in lease(session, made, who, count=1, now=NOW + step):
                answer = {"best": rng.randrange(2), "strength": "slight"}
                said = rng.choice([Said("answer", answer, duration=rng.random()), Said("answer", answer), Said("skip")])
                judge(session, who, f"{step}", one.id, said, now=NOW + step / 7)


def everything(database: Database) -> dict[str, list[Any]]:
    with database.reading() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in Base.metadata.sorted_tables
        }


def test_everything_comes_back_in_either_kind_and_work_goes_on(
    database: Database, other: Database, tmp_path: Path
) -> None:
    fill(database, seed=1)
    file = tmp_path / "backup.gz"
    counts = backup(database, file, now=NOW)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert restore(other, file) == counts
    before, after = everything(database), everything(other)
    assert before == after
    assert {name: len(rows) for name, rows in before.items() if rows} == counts
    assert all(before[table.name] for table in Base.metadata.sorted_tables)  # no table was tried without a row
    with other.writing() as session:
        (new,) = people(session, "new")
        made = find_project(session, "compare of 5")
        (one,) = lease(session, made, new, count=1, now=NOW)
        judge(session, new, "new", one.id, Said("answer", {"best": 0, "strength": "clear"}), now=NOW)
        assert add_tasks(session, made, [NewTask("new", [NewResponse("a"), NewResponse("b")])], now=NOW).new == 1
        assert progress(session, made).tasks == 7
        session.add(Token(secret_hash="u", user_id=new.id, label="l", created_at=NOW, revoked_at=None))


def test_a_backup_is_of_one_moment(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody judges between the reading of two tables: all of it is in the backup, or nothing."""
    fill(database, seed=2)
    with database.reading() as session:
        judgements = session.scalar(select(func.count(Judgement.id)))
        votes = progress(session, find_project(session, "compare of 5")).votes
    tables = type(Base.metadata).sorted_tables.fget(Base.metadata)  # type: ignore[attr-defined]

    def meanwhile(_: Any) -> Iterator[Any]:
        for table in tables:
            yield table
            if table.name == "tasks":
                with database.writing() as session:
                    (new,) = people(session, "meanwhile")
                    (one,) = lease(session, find_project(session, "rank of 3"), new, count=1, now=NOW)
                    judge(session, new, "meanwhile", one.id, Said("answer", {"ranks": [1, 2, 3]}), now=NOW)

    monkeypatch.setattr(type(Base.metadata), "sorted_tables", property(meanwhile))
    counts = backup(database, tmp_path / "backup.gz", now=NOW)
    monkeypatch.undo()
    assert counts["judgements"] == judgements
    assert counts["users"] == 3
    assert votes == progress_of(tmp_path / "backup.gz")


def progress_of(file: Path) -> int:
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    return sum(row[1]["votes"] for row in rows[1:-1] if row[0] == "tasks" and row[1]["project_id"] == 1)


def test_a_backup_of_an_older_schema_is_brought_to_the_newest(
    database: Database, other: Database, tmp_path: Path
) -> None:
    """The oracle is the schema that Alembic lays, filled with the rows as they were then."""
    fill(database, seed=6)
    file = tmp_path / "backup.gz"
    counts = backup(database, file, now=NOW)
    head, *rows, _ = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    since = {"tasks": "withdrawn_at", "invitations": "note"}
    for table, row in rows:
        row.pop(since.get(table, ""), None)
    lines = [json.dumps(one).encode() + b"\n" for one in ({**head, "schema": "0001"}, *rows)]
    ending = {"rows": counts, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    file.write_bytes(gzip.compress(b"".join([*lines, json.dumps(ending).encode()])))
    with other.writing() as session:
        session.execute(text("CREATE TABLE somebody_elses (number INTEGER)"))
        session.execute(text("INSERT INTO somebody_elses VALUES (7)"))
    assert restore(other, file) == counts
    with other.writing() as session:
        assert session.scalar(text("SELECT number FROM somebody_elses")) == 7
        session.execute(text("DROP TABLE somebody_elses"))
    assert everything(other) == everything(database)
    silent = select(func.count()).where(Judgement.answer.is_(null()))
    with database.reading() as before, other.reading() as after:
        assert compare_metadata(MigrationContext.configure(after.connection()), Base.metadata) == []
        assert after.scalar(silent) == before.scalar(silent) != 0
    with pytest.raises(DBAPIError, match="only ever added"), other.writing() as session:
        session.execute(delete(Judgement))


def test_a_database_that_holds_something_is_left_alone(database: Database, tmp_path: Path) -> None:
    fill(database, seed=3)
    backup(database, tmp_path / "backup.gz", now=NOW)
    before = everything(database)
    with pytest.raises(UserError, match="is not empty"):
        restore(database, tmp_path / "backup.gz")
    assert everything(database) == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [*lines[:-2], lines[-1]], "damaged"),
        (lambda lines: lines[:-1], "damaged"),
        (lambda lines: [*lines, lines[1]], "damaged"),
        (lambda lines: [line.replace(b'"ann"', b'"eve"') for line in lines], "damaged"),
        (lambda lines: [lines[0], b'["nowhere", {}]\n', *lines[1:]], "damaged"),
        (lambda lines: [lines[0], b'["users", {"id": 1}]\n', *lines[1:]], "does not fit"),
        (lambda lines: [lines[0], b'["users", {"no": 1}]\n', *lines[1:]], "does not fit"),
        (lambda lines: [lines[0], b'["users", {"id": 99999999999999999999}]\n', *lines[1:]], "does not fit"),
        (lambda lines: [lines[0], b"[[[[\n", *lines[1:]], "damaged"),
        (lambda lines: lines[1:], "is no backup"),
        (lambda lines: [], "is no backup"),
        (lambda lines: [lines[0].replace(b'"version": 1', b'"version": 9'), *lines[1:]], "newer Keel"),
        (lambda lines: [re.sub(rb'"schema": "\d+"', b'"schema": "9999"', lines[0]), *lines[1:]], "newer Keel"),
        (lambda lines: [re.sub(rb'"schema": "\d+"', b'"schema": ["1"]', lines[0]), *lines[1:]], "newer Keel"),
    ],
)
def test_a_backup_that_is_not_whole_fills_nothing(tmp_path: Path, damage: Any, says: str) -> None:
    """On SQLite alone: what is checked is the file."""
    database, other = Database(tmp_path / "one.db"), Database(tmp_path / "two.db")
    fill(database, seed=4)
    file = tmp_path / "backup.gz"
    backup(database, file, now=NOW)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.write_bytes(gzip.compress(b"".join(damage(lines))))
    with pytest.raises(UserError, match=says) as refused:
        restore(other, file)
    assert "\n" not in str(refused.value)
    assert not any(everything(other).values())
    database.close()
    other.close()


def test_a_file_that_breaks_off_fills_nothing(tmp_path: Path) -> None:
    database, other = Database(tmp_path / "one.db"), Database(tmp_path / "two.db")
    fill(database, seed=5)
    file = tmp_path / "backup.gz"
    backup(database, file, now=NOW)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged gzip"):
        restore(other, file)
    assert not any(everything(other).values())
    with other.writing() as session:
        session.add(User(name="x", role="admin", password_hash="-", created_at=NOW))
    database.close()
    other.close()
