"""The server is killed while people judge: what it acknowledged is there, once."""

from __future__ import annotations

import asyncio

from benchmarks.feedback import check, fill, load
from keel.feedback.database import Database


def test_a_kill_loses_nothing_that_was_acknowledged(database: Database, database_url: str) -> None:
    project, tokens = fill(database, 6, 60)
    seen, _ = asyncio.run(load(database_url, project, tokens, 60, kills=2, think=0.02))
    assert len(seen.acknowledged) == 60
    assert seen.retries > 0
    assert check(database, project, seen, 60) == []
