"""Which key ordered a job, and how many that have not ended a key may have."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("max_jobs", sa.Integer, nullable=True))
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("key", sa.String(32), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("key")
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("max_jobs")
