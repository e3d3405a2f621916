"""What Alembic runs: always on a connection that `keel.feedback.database` opened."""

from __future__ import annotations

from alembic import context

from keel.feedback.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
