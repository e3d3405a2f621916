"""`keel serve` as a user starts and ends it."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from keel.serve.launch import is_loopback, listen, url_of
from tests.cli.serving import serving
from tests.serve.support import PATIENCE, ask
from tests.worlds import save_tiny_lm, tiny_classifier, tiny_codec

KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_lm(tmp_path_factory.mktemp("serve") / "model"))


def refusal(*arguments: str) -> str:
    """The sentence with which it ends before anything begins."""
    error = CliRunner().invoke(app, ["serve", *arguments]).exception
    assert isinstance(error, UserError), error
    return str(error)


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process of its own, its URL, and what it printed until it was ready."""
    with serving("serve", *arguments, "--device", "cpu") as (process, said):
        found = re.search(r"Ready at (http://\S+)/v1", said)
        assert found, (said, process.poll() is not None and process.communicate())
        yield process, found[1], said


def test_it_serves_with_its_token_until_it_is_told_to_end_and_ends_what_it_began(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge: Any = tiny_classifier(vocab=len(tiny_codec().hf))
    judge.save_pretrained(tmp_path)
    tiny_codec().save(tmp_path)
    monkeypatch.setenv("KEEL_SERVE_TOKEN", "sesame")
    with started(model, "--reward", str(tmp_path), "--seed", "1") as (process, url, said):
        assert f"{model}: " in said
        example = said.split("Try it:\n\n")[1].split("\n\n")[0]
        heads = dict(re.findall(r"-H '([\w-]+): ([\w/ ]+)'", example))
        assert heads == {"Content-Type": "application/json", "Authorization": "Bearer "}
        assert "$KEEL_SERVE_TOKEN" in example
        assert f"curl {url}/v1/completions" in example
        body = re.findall(r"-d '(.*)'", example)[0].encode()
        assert ask(url, "/v1/completions", body).status == 401
        assert ask(url, "/v1/completions", body, **KEY).status == 200
        listed = ask(url, "/v1/models", method="GET", **KEY).tree
        assert [one["id"] for one in listed["data"]] == [model, str(tmp_path)]
        items = [{"prompt": "Buy a", "response": "ladder"}]
        assert len(ask(url, "/v1/score", {"items": items}, **KEY).tree["scores"]) == 1
        long = {"prompt": "Buy a", "max_tokens": 40, "n": 200, "stream": True}
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)) as connection:
            connection.request("POST", "/v1/completions", json.dumps(long), {**KEY, "Content-Type": "application/json"})
            response = connection.getresponse()
            begun = response.readline()  # a token is there
            process.send_signal(signal.SIGTERM)
            events = (begun + response.read()).decode().split("\n\n")
        out, error = process.communicate(timeout=PATIENCE)
    assert events[-2:] == ["data: [DONE]", ""]
    assert sum('"finish_reason": null' not in event for event in events[:-2]) == 200
    assert (process.returncode, out, error) == (0, "Ended.\n", "")


def test_mistakes_are_one_sentence(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEEL_SERVE_TOKEN", raising=False)
    free = ("--port", "0")
    assert refusal() == "give a model to serve, or reward models with --reward, or both"
    assert "no tokenizer could be loaded from nowhere" in refusal("nowhere", *free)
    assert "no reward model" in refusal("--reward", model, *free)
    assert "--allow-updates has no effect without a policy" in refusal("--reward", "x", "--allow-updates")
    assert "others can reach 0.0.0.0: give a --token" in refusal(model, "--host", "0.0.0.0")
    with listen("127.0.0.1", 0) as taken:
        port = url_of(taken).rpartition(":")[2]
        assert refusal(model, "--port", port) == (
            f"cannot listen at port {port} of 127.0.0.1: {os.strerror(errno.EADDRINUSE)}; give another --host or --port"
        )
    monkeypatch.setitem(sys.modules, "keel.serve.app", None)
    assert "pip install 'keel-rlhf[serve]'" in refusal(model, *free)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.0.1", "localhost", "::1")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", "localhost.evil.example", "")),
    ],
)
def test_what_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) == here
