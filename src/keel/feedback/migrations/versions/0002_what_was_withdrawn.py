"""Tasks that were put there by mistake are withdrawn; an invitation says whom it is for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_OPEN = sa.text("seats_taken < seats AND withdrawn_at IS NULL")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("withdrawn_at", sa.Double(), nullable=True))
    op.drop_index("ix_tasks_open", table_name="tasks")
    op.create_index(
        "ix_tasks_open",
        "tasks",
        ["project_id", "purpose", "priority", "shuffle"],
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.add_column("invitations", sa.Column("note", sa.Text(), nullable=False, server_default=""))
