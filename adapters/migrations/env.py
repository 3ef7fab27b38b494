"""Alembic's entry: run the migrations on the connection that `adapters.registry.database` hands over."""

from alembic import context

from adapters.registry.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite can't alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
