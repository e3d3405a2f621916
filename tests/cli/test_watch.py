"""`keel watch` as a user starts and ends it."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from tests.feedback.watch.support import begin_run

PATIENCE = 120  # seconds until a test that hangs fails


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing"], "missing is no directory; name a run's, or one that runs lie in."),
        ([".", "--host", "0.0.0.0"], "others can reach 0.0.0.0: give a --token"),
    ],
)
def test_what_it_refuses(arguments: list[str], sentence: str) -> None:
    error = CliRunner().invoke(app, ["watch", *arguments]).exception
    assert isinstance(error, UserError), error
    assert sentence in str(error)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_though_somebody_listens(tmp_path: Path, how: signal.Signals) -> None:
    begin_run(tmp_path / "a")
    command = [sys.executable, "-m", "keel", "watch", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"Open (http://\S+)/ in a browser", said)
        assert found, (said, process.communicate())
        connection = http.client.HTTPConnection(urlsplit(found[1]).netloc, timeout=PATIENCE)
        connection.request("GET", "/api/watch/events")
        stream = connection.getresponse()
        assert stream.readline().startswith(b"id: ")
        process.send_signal(how)
        rest, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, rest, errors) == (0, "Ended.\n", "")
        connection.close()
    finally:
        process.kill()
        process.communicate()
