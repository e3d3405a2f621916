"""A project's assignments are found without reading those of all others."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("ix_assignments_project", "assignments", ["project_id"])
