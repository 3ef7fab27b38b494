"""Tombstones, notes and tags of versions; the history of aliases, which begins with where each points now."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("namespace", sa.String(64), nullable=False),
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=True),
        sa.Column("is_rollback", sa.Boolean, nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("adapter_id", "alias", "revision"),
    )
    op.execute(
        "INSERT INTO alias_moves (namespace, adapter_id, alias, revision, version, is_rollback, moved_at) "
        "SELECT namespace, adapter_id, name, revision, version, (1 = 0), moved_at FROM aliases"
    )
    # Added in place, not in a copy of the table: what points at it stays.
    op.add_column("versions", sa.Column("note", sa.String(2000), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("tags", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("versions", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_versions_deleted_at", "versions", ["deleted_at"])


def downgrade() -> None:
    op.drop_index("ix_versions_deleted_at", "versions")
    for column in ("deleted_at", "tags", "note"):
        op.drop_column("versions", column)
    op.drop_table("alias_moves")
