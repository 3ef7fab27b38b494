"""What the queue tells: jobs and their events as they are recorded, apart from the database's rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.jobs.orders import JobOrder, JobPlan
from service.jobs.tables import JobEventTable, JobTable


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now. ``attempt`` is that of the claim that runs it, or ran it last."""

    id: str
    namespace: str
    status: str
    is_paused: bool
    wish: str
    order: JobOrder
    plan: JobPlan
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    num_failures: int
    worker: str
    beats: int
    handle: dict[str, Any] | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    fine_tuned_model: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A line of a job's history; numbers rise."""

    number: int
    job: str
    created_at: datetime
    level: str
    kind: str
    message: str
    data: dict[str, Any]


def job_of(row: JobTable) -> Job:
    return Job(
        id=row.id,
        namespace=row.namespace,
        status=row.status,
        is_paused=row.is_paused,
        wish=row.wish,
        order=JobOrder.model_validate(row.order),
        plan=JobPlan.model_validate(row.plan),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        num_failures=row.num_failures,
        worker=row.worker,
        beats=row.beats,
        handle=row.handle,
        progress=row.progress,
        result=row.result,
        error=row.error,
        fine_tuned_model=row.fine_tuned_model,
    )


def event_of(row: JobEventTable) -> JobEvent:
    return JobEvent(
        row.number, row.job, row.created_at, row.level, row.kind, row.message, dict(row.data)
    )
