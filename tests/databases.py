"""The feedback database of a test: an SQLite file, and a database on a real PostgreSQL that the session starts."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from keel.feedback.database import Database

_START_SECONDS = 300
_numbers = itertools.count()


@dataclass(frozen=True)
class Postgres:
    """A server of this test session alone."""

    port: int

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def database(self) -> str:
        """The URL of a new database with the newest schema."""
        name = f"test{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE keel")
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on a free port, with a template database; ended with the session."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = shutil.which("postgres") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="keel-postgres-", ignore_cleanup_errors=True) as folder:
        owner = _owner(folder)
        data = f"{folder}/data"
        subprocess.run(
            [Path(found).with_name("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"],
            check=True,
            capture_output=True,
            user=owner,
        )
        with socket.socket() as mine:  # held, so that nobody else is given it before the server has it
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mine.bind(("127.0.0.1", 0))
            port = mine.getsockname()[1]
            options = ["-p", str(port), "-k", folder, "-c", "fsync=off", "-c", "max_connections=200"]
            with Path(folder, "log").open("wb") as log:
                server = subprocess.Popen([found, "-D", data, *options], stderr=log, stdout=log, user=owner)
            try:
                made = Postgres(port)
                _wait_for(made, server)
                made.run("CREATE DATABASE keel")
                Database(made.url("keel")).close()
                yield made
            finally:
                server.send_signal(signal.SIGINT)  # told otherwise it waits for whoever is connected
                server.wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty database of either kind is."""
    if request.param == "sqlite":
        yield str(tmp_path / "feedback.db")
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.database()
    yield url
    server.run(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database of either kind, with the newest schema."""
    made = Database(database_url)
    yield made
    made.close()


def _owner(folder: str) -> str | None:
    """Who runs the server: PostgreSQL refuses root, so then the account that its package made."""
    if os.geteuid() != 0:
        return None
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL is not installed with an account of its own, and root may not run it")
    os.chown(folder, account.pw_uid, account.pw_gid)
    return "postgres"


def _wait_for(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.run("SELECT 1")
            return
        except psycopg.OperationalError:
            assert process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < until
            time.sleep(0.05)
