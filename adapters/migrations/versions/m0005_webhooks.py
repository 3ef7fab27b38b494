"""Whether a job's end has been told to the webhook."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("told_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("tell_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("num_told", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET told_at = finished_at WHERE finished_at IS NOT NULL")
    op.create_index("ix_jobs_told", "jobs", ["told_at", "finished_at"])


def downgrade() -> None:
    op.drop_index("ix_jobs_told", "jobs")
    with op.batch_alter_table("jobs") as table:
        for column in ("told_at", "tell_at", "num_told"):
            table.drop_column(column)
