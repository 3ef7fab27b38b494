"""Tables of jobs, in the registry's database. Every row carries its namespace."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from adapters.registry.tables import Base, Moment, now


class FileTable(Base):
    """A file of examples that was sent; its bytes are in the blob store."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_sent", "namespace", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # what the data gate said
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)


class JobTable(Base):
    """An order to train, and how far it is. Only `service.jobs.queue` changes ``status``."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("namespace", "idempotency_key"),
        Index("ix_jobs_next", "status", "is_paused", text("priority DESC"), "number"),
        Index("ix_jobs_ended", "finished_at", "namespace", "key"),
        Index("ix_jobs_told", "told_at", "finished_at"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    namespace: Mapped[str] = mapped_column(String(64), index=True)
    key: Mapped[str | None] = mapped_column(String(32))  # the API key that ordered it
    status: Mapped[str] = mapped_column(String(16))
    is_paused: Mapped[bool] = mapped_column(default=False)
    wish: Mapped[str] = mapped_column(String(16), default="")  # pause or cancel, for the worker
    priority: Mapped[int] = mapped_column(default=0)
    order: Mapped[dict[str, Any]] = mapped_column(JSON)
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)  # what the order came to when it was checked
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    finished_at: Mapped[datetime | None] = mapped_column(Moment)  # None as long as it has not ended
    idempotency_key: Mapped[str | None] = mapped_column(String(128))
    # Who runs it: each claim has a number of its own, and its worker counts beats up while it lives.
    attempt: Mapped[int] = mapped_column(default=0)
    num_failures: Mapped[int] = mapped_column(default=0)  # attempts whose worker or run died
    worker: Mapped[str] = mapped_column(String(200), default="")
    beats: Mapped[int] = mapped_column(default=0)
    handle: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # what the launcher started
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    fine_tuned_model: Mapped[str | None] = mapped_column(String(200))
    # Its end, to the webhook: when it was taken, when it is sent next, how often it was sent.
    told_at: Mapped[datetime | None] = mapped_column(Moment)
    tell_at: Mapped[datetime | None] = mapped_column(Moment)
    num_told: Mapped[int] = mapped_column(default=0)


class JobEventTable(Base):
    """What happened to a job, in order; numbers rise over all jobs."""

    __tablename__ = "job_events"
    number: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    level: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(String(4000))
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
