"""The pages of runs within the feedback app: for admins and viewers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from keel.feedback.database import Database
from tests.feedback.support import add_user, quick_app, signed_in, visitor
from tests.feedback.watch.support import begin_run, begin_stage, log


@pytest.fixture
def watched(tmp_path: Path) -> FastAPI:
    log(begin_stage(begin_run(tmp_path / "runs" / "polite")), range(1, 4))
    database = Database(tmp_path / "feedback.db")
    for name, role in (("ann", "annotator"), ("vic", "viewer")):
        add_user(database, name, role)  # type: ignore[arg-type]
    return quick_app(database, runs=[tmp_path / "runs"])


def test_a_viewer_finds_the_runs_from_the_first_page(watched: FastAPI) -> None:
    vic = signed_in(watched, "vic")
    assert 'href="/watch/"' in vic.get("/").text
    overview = vic.get("/watch/").text
    found = re.search(r'href="(/watch/runs/[^"]+)"', overview)
    assert found, overview
    assert vic.get(found[1]).status_code == 200
    assert vic.get("/api/watch/runs").status_code == 200
    for page in (overview, vic.get(found[1]).text, vic.get("/watch/compare").text):
        for link in ("/projects", "/account", "/watch/", "/watch/compare"):
            assert f'href="{link}"' in page, link
        assert 'action="/sign-out"' in page


def test_the_api_has_one_shape_of_error_with_runs_in_it_too(watched: FastAPI) -> None:
    document = watched.openapi()
    assert [name for name in document["components"]["schemas"] if "__" in name] == []  # two models of one name
    for path, methods in document["paths"].items():
        for operation in methods.values():
            content = operation["responses"]["4XX"]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, path


def test_an_annotator_sees_none_of_them(watched: FastAPI) -> None:
    ann = signed_in(watched, "ann")
    assert "/watch/" not in ann.get("/").text
    for path in ("/watch/", "/watch/runs/polite", "/watch/compare", "/api/watch/runs", "/api/watch/events"):
        assert ann.get(path).status_code == 403, path


def test_nobody_sees_them_without_signing_in(watched: FastAPI) -> None:
    stranger = visitor(watched)
    assert stranger.get("/watch/").headers["location"].startswith("/sign-in")
    assert stranger.get("/api/watch/runs").status_code == 401
