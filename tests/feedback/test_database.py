"""Opening a database: one sentence where that fails, one schema whoever else opens it, and nobody else's to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keel.errors import UserError
from keel.feedback.database import Database
from tests.databases import Postgres


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
