"""The index of waiting jobs, in the order in which they are claimed: without it each claim sorts all that wait."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_FIRST = ["status", "is_paused"]


def upgrade() -> None:
    op.drop_index("ix_jobs_next", "jobs")
    op.create_index("ix_jobs_next", "jobs", [*_FIRST, sa.text("priority DESC"), "number"])


def downgrade() -> None:
    op.drop_index("ix_jobs_next", "jobs")
    op.create_index("ix_jobs_next", "jobs", [*_FIRST, "priority", "number"])
