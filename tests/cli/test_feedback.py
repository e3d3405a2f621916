"""`keel feedback serve` as a user starts and ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.tables import Project
from tests.cli.serving import serving
from tests.feedback.support import PASSWORD, cramp

_PATIENCE = 60


def test_it_gives_one_setup_link_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "feedback.db"
    monkeypatch.setenv("KEEL_FEEDBACK_DATABASE", str(database))
    with serving("feedback", "serve") as (process, said):
        url = re.search(rf"Feedback in {re.escape(str(database))}, at (http://127\.0\.0\.1:\d+)\n", said)
        link = re.search(r"This link makes the first admin.*\n\n  (\S+)\n", said)
        assert url, said
        assert link, said
        assert link[1].startswith(url[1] + "/join/")
        made = httpx.post(link[1], data={"name": "Ana", "password": PASSWORD}, timeout=_PATIENCE)
        assert (made.status_code, made.headers["location"]) == (303, "/")
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out, error) == (0, "Ended.\n", "")
    with serving("feedback", "serve") as (process, said):
        assert "/join/" not in said
        again = re.search(r"at (\S+)\n", said)
        assert again, said
        signed_in = httpx.post(again[1] + "/sign-in", data={"name": "ana", "password": PASSWORD}, timeout=_PATIENCE)
        assert signed_in.status_code == 303
        with closing(httpx.Client(headers={"Host": "evil.example"}, timeout=_PATIENCE)) as client:
            assert client.get(again[1] + "/sign-in").status_code == 403


@pytest.mark.parametrize(
    ("arguments", "url", "warns"),
    [
        (["--host", "127.0.0.1"], r"http://127\.0\.0\.1:\d+", False),
        (["--host", "0.0.0.0"], r"http://0\.0\.0\.0:\d+", True),
        (["--host", "0.0.0.0", "--public-url", "https://keel.example/"], r"https://keel\.example", False),
        (["--host", "0.0.0.0", "--public-url", "http://keel.example"], r"http://keel\.example", True),
    ],
)
def test_it_warns_where_passwords_travel_in_the_open(
    arguments: list[str], url: str, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("keel.serve.launch.run_until_told", lambda app, *_: served.append(app))
    command = ["feedback", "serve", "--database", str(tmp_path / "x.db"), "--port", "0", *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert len(served) == 1
    assert re.search(rf"\n  {url}/join/\S+\n", result.stdout)
    assert ("proxy with TLS" in result.stdout) == warns


def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*arguments: str) -> str:
        error = CliRunner().invoke(app, ["feedback", "serve", "--port", "0", *arguments]).exception
        assert isinstance(error, UserError), error
        return str(error)

    assert "mysql" in refusal("--database", "mysql://a/b")
    database = ("--database", str(tmp_path / "x.db"))
    assert "--public-url" in refusal(*database, "--public-url", "keel.example")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = refusal(*database, "--port", str(other.getsockname()[1]))
    assert taken.endswith("Address already in use; give another --host or --port")
    with monkeypatch.context() as patch:
        cramp(patch, "query_only = ON")
        assert re.search(
            r"x\.db cannot be opened: .*readonly database; name a file that may be written", refusal(*database)
        )
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for name in [name for name in sys.modules if name.startswith("keel.feedback")]:
        monkeypatch.delitem(sys.modules, name)
    assert refusal(*database).endswith("pip install 'keel-rlhf[feedback]'")


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": "p" * 9_000, "response": f"{row}"}) + "\n" for row in range(20)))
    database = tmp_path / "x.db"
    Database(database).close()
    cramp(monkeypatch, "max_page_count = 1")  # SQLite takes it for as many as there are
    command = ["feedback", "import", "talk", str(tasks), "--kind", "rate", "--database", str(database)]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UserError), error
    assert re.search(r"x\.db cannot be used: database or disk is full; make room", str(error))
    with Database(database).reading() as session:
        assert session.scalars(select(Project)).all() == []
