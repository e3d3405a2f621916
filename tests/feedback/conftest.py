"""The databases that the tests of this folder run on."""

from __future__ import annotations

from tests.databases import database, database_url, postgres

__all__ = ["database", "database_url", "postgres"]
