"""Indexes of jobs by when they ended, and of a namespace's files by when they came."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_index("ix_jobs_ended", "jobs", ["finished_at", "namespace", "key"])
    op.drop_index("ix_files_namespace", "files")
    op.create_index("ix_files_sent", "files", ["namespace", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_files_sent", "files")
    op.create_index("ix_files_namespace", "files", ["namespace"])
    op.drop_index("ix_jobs_ended", "jobs")
