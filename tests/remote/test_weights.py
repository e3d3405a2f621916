"""Weights for the servers: whole directories, the newest two, and each kind's requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from keel.config.servers import ServerKind
from keel.errors import UserError
from keel.remote.server import Failed, Server
from keel.remote.weights import WeightsFolder, load_on
from tests.remote.fake import Asked, FakeServer, Reply


def test_the_newest_two_are_kept_and_each_is_whole(tmp_path: Path) -> None:
    written: list[list[str]] = []

    def write(folder: Path) -> None:
        written.append(sorted(path.name for path in weights.folder.iterdir()))
        (folder / "model").write_text(str(len(written)))

    (tmp_path / "servers" / "from-a-killed-run").mkdir(parents=True)
    weights = WeightsFolder(tmp_path / "servers", write)
    for version in ("a", "b", "b", "c"):
        weights.publish(version)
    assert sorted(path.name for path in weights.folder.iterdir()) == ["b", "c"]
    assert (weights.path("c") / "model").read_text() == "3"
    assert written == [[".a.work"], [".b.work", "a"], [".c.work", "a", "b"]]
    weights.discard()
    assert not weights.folder.exists()


@pytest.mark.parametrize(
    ("kind", "requests"),
    [
        ("keel", [("/update_weights", {"path": "/w/step-1", "version": "step-1"})]),
        (
            "vllm",
            [
                ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "/w/step-1"}}),
                ("/reset_prefix_cache", {}),
            ],
        ),
        ("sglang", [("/update_weights_from_disk", {"model_path": "/w/step-1", "weight_version": "step-1"})]),
    ],
)
def test_each_kind_is_told_in_its_own_way(kind: ServerKind, requests: list[tuple[str, object]]) -> None:
    with FakeServer(lambda asked: Reply({"success": True})) as fake:
        server = Server(fake.url)
        load_on(server, kind, Path("/w/step-1"), "step-1")
        server.close()
        assert [(asked.path, asked.body) for asked in fake.asked] == requests


@pytest.mark.parametrize(
    ("kind", "reply", "what"),
    [
        ("vllm", Reply({"success": False}), "prefix cache"),
        ("sglang", Reply({"success": False, "message": "no such file"}), "no such file"),
    ],
)
def test_weights_that_did_not_arrive_are_a_failure(kind: ServerKind, reply: Reply, what: str) -> None:
    with FakeServer(lambda asked: reply) as fake:
        server = Server(fake.url)
        with pytest.raises(Failed, match=what):
            load_on(server, kind, Path("/w"), "1")
        server.close()


@pytest.mark.parametrize(("kind", "hint"), [("keel", "--allow-updates"), ("vllm", "VLLM_SERVER_DEV_MODE=1")])
def test_a_server_that_takes_no_weights_is_to_be_started_otherwise(kind: ServerKind, hint: str) -> None:
    def missing(asked: Asked) -> Reply:
        return Reply({"detail": "Not Found"}, status=404)

    with FakeServer(missing) as fake:
        server = Server(fake.url)
        with pytest.raises(UserError, match=rf"{fake.url} refuses POST .*HTTP 404.*{hint}"):
            load_on(server, kind, Path("/w"), "1")
        server.close()


def test_weights_that_a_server_refuses_are_told_in_its_own_words() -> None:
    with FakeServer(lambda asked: Reply({"error": {"message": "another architecture"}}, status=400)) as fake:
        server = Server(fake.url)
        with pytest.raises(UserError, match=r"\(HTTP 400: another architecture\)$"):
            load_on(server, "keel", Path("/w"), "1")
        server.close()
