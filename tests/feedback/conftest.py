"""The databases that the tests of this folder run on, and an app with three people."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from keel.feedback.database import Database
from tests.databases import database, database_url, postgres
from tests.feedback.offices import judged, shared, world, world_on_either
from tests.feedback.support import add_user, quick_app

__all__ = ["database", "database_url", "judged", "postgres", "shared", "world", "world_on_either"]


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with an admin `root`, an annotator `ann` and a viewer `vic`."""
    path = tmp_path_factory.mktemp("three") / "feedback.db"
    database = Database(path)
    add_user(database, "ann", "annotator")
    add_user(database, "vic", "viewer")
    database.close()
    return path


@pytest.fixture
def store(three: Path, tmp_path: Path) -> Iterator[Database]:
    """These three anew. HTTP is the same on either database."""
    made = Database(shutil.copy(three, tmp_path))
    yield made
    made.close()


@pytest.fixture
def app(store: Database) -> FastAPI:
    return quick_app(store)
