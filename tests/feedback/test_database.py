"""Opening a database: one sentence where that fails, one schema whoever else opens it, and nobody else's to read."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from keel.errors import UserError
from keel.feedback.database import AT_ONCE, Database
from keel.feedback.judgements import Said, judge
from keel.feedback.leases import lease
from keel.feedback.tables import Base, Judgement
from tests.databases import Postgres
from tests.feedback.support import add_user, cramp, quick_app, with_token
from tests.feedback.worlds import NOW, people, project


@pytest.mark.parametrize(
    "url",
    [
        "mysql://x/y",
        "nonsense://",
        "/no/such/folder/feedback.db",
        "a\x00b",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://keel:s3cret@127.0.0.1:abc/keel",
        "postgresql://keel:s3cret@127.0.0.1:1/keel",
        "postgresql://keel:s3cret@127.0.0.1:1/keel?colour=s3cret",
        "postgresql+asyncpg://keel:s3cret@127.0.0.1:1/keel",
        "postgresql://keel:s3/cret@127.0.0.1/keel",
    ],
)
def test_what_is_no_database_is_one_sentence(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        Database(url)
    assert "\n" not in str(error.value)
    assert "s3" not in str(error.value)


def test_a_file_that_is_something_else_is_one_sentence_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Ann, " * 1000)
    with pytest.raises(UserError, match=r"letter\.txt cannot be opened: .*not a database"):
        Database(file)
    assert file.read_text() == "Dear Ann, " * 1000


@pytest.mark.parametrize(
    ("pragma", "words"), [("max_page_count = 2", "disk is full; make room"), ("query_only = ON", "readonly database; ")]
)
def test_a_disk_that_takes_nothing_is_one_sentence(
    pragma: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramp(monkeypatch, pragma)
    with pytest.raises(UserError, match=rf"new\.db cannot be opened: .*{words}"):
        Database(tmp_path / "new.db")


def test_a_folder_that_is_not_there_is_named_as_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unable to open database file; name a file in a folder that is there"):
        Database(tmp_path / "none" / "feedback.db")


def test_only_its_owner_reads_an_sqlite_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        database = Database(tmp_path / "feedback.db")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    database.close()
    assert modes == {"feedback.db": 0o600, "feedback.db-wal": 0o600, "feedback.db-shm": 0o600}


def test_a_user_who_may_make_no_tables_is_told_so(postgres: Postgres) -> None:
    postgres.run("CREATE ROLE guest LOGIN")
    postgres.run("CREATE DATABASE guarded")
    Database(postgres.url("guarded")).close()  # its tables are another's
    with pytest.raises(UserError, match=r"cannot be opened: .*permission denied") as error:
        Database(postgres.url("guarded").replace("postgres@", "guest:s3cret@"))
    assert "s3cret" not in str(error.value)


_OPEN = "import sys; from keel.feedback.database import Database; print(); sys.stdin.readline(); Database(sys.argv[1])"


def test_processes_that_open_a_new_database_at_once_make_one_schema(postgres: Postgres) -> None:
    postgres.run("CREATE DATABASE fresh")
    command = [sys.executable, "-c", _OPEN, postgres.url("fresh")]
    opening = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for one in opening:
        assert one.stdout is not None
        one.stdout.readline()  # everything is imported
    for one in opening:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.communicate(timeout=60)[1] for one in opening] == ["", "", ""]


def test_no_more_sessions_work_at_a_time_than_do_so_fast(database: Database) -> None:
    lock, working, most = threading.Lock(), 0, 0
    all_there = threading.Barrier(AT_ONCE)  # as many do work

    def work() -> None:
        nonlocal working, most
        with database.reading():
            with lock:
                working += 1
                most = max(most, working)
            all_there.wait(60)
            time.sleep(0.02)  # time enough for another to be wrong
            with lock:
                working -= 1

    with ThreadPoolExecutor(5 * AT_ONCE) as pool:
        for one in [pool.submit(work) for _ in range(5 * AT_ONCE)]:
            one.result()
    assert most == AT_ONCE


def test_writers_that_wait_for_another_keep_nobody_from_reading(tmp_path: Path) -> None:
    database, waiting = Database(tmp_path / "feedback.db"), 5 * AT_ONCE

    def write() -> None:
        with database.writing():
            pass

    def read() -> int:
        with database.reading() as session:
            return session.scalar(text("SELECT 1")) or 0

    with ThreadPoolExecutor(waiting + 1) as pool:
        with database.writing():
            others = [pool.submit(write) for _ in range(waiting)]
            time.sleep(0.1)  # all of them wait
            assert pool.submit(read).result(timeout=20) == 1  # and does not wait until it is told that all is busy
            assert not any(one.done() for one in others)
        for one in others:
            one.result(timeout=60)
    database.close()


def test_who_waits_for_too_long_is_told_that_it_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keel.feedback.database._BUSY_SECONDS", 0.05)
    database = Database(tmp_path / "feedback.db")
    client = with_token(quick_app(database), database, add_user(database, "ann", "admin"))
    with database.writing():
        refused = client.post("/api/v1/projects", json={"name": "p", "kind": "compare"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert refused.headers["Retry-After"]
    assert client.post("/api/v1/projects", json={"name": "p", "kind": "compare"}).status_code == 201
    database.close()


def test_what_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    Database(tmp_path / "new.db").discard()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays_when_it_is_discarded(tmp_path: Path) -> None:
    Database(tmp_path / "old.db").close()
    Database(tmp_path / "old.db").discard()
    assert [file.name for file in tmp_path.iterdir()] == ["old.db"]


def test_what_others_have_filled_meanwhile_stays(tmp_path: Path) -> None:
    made, other = Database(tmp_path / "new.db"), Database(tmp_path / "new.db")
    add_user(other, "ann", "annotator")
    other.close()
    made.discard()
    with Database(tmp_path / "new.db").reading() as session:
        assert session.scalar(text("SELECT count(*) FROM users WHERE name = 'ann'")) == 1


def test_what_others_have_open_stays_and_keeps_what_they_put_there(tmp_path: Path) -> None:
    made, other = Database(tmp_path / "new.db"), Database(tmp_path / "new.db")
    made.discard()
    add_user(other, "ann", "annotator")
    other.close()
    with Database(tmp_path / "new.db").reading() as session:
        assert session.scalar(text("SELECT count(*) FROM users WHERE name = 'ann'")) == 1


def test_who_opens_it_while_it_is_removed_is_told_and_loses_nothing(tmp_path: Path) -> None:
    made = Database(tmp_path / "new.db")
    opening = sqlite3.connect(tmp_path / "new.db")  # and has not read it yet
    made.discard()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        opening.execute("PRAGMA journal_mode = WAL")  # the first that a Database does
    opening.close()


def test_the_migrations_make_the_tables_as_they_are_declared(database: Database) -> None:
    with database.reading() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


@pytest.mark.parametrize("change", ["UPDATE judgements SET comment = 'x'", "DELETE FROM judgements"])
def test_nobody_changes_a_judgement(database: Database, change: str) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        (one,) = lease(session, project(session), ann, count=1, now=NOW)
        judge(session, ann, "key", one.id, Said("skip"), now=NOW)
    with pytest.raises(DBAPIError, match="only ever added"), database.writing() as session:
        session.execute(text(change))
    with database.reading() as session:
        assert session.scalar(select(func.count(Judgement.id))) == 1


def test_a_database_of_a_newer_keel_is_refused(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer Keel"):
        Database(database_url)
