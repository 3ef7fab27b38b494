"""What the queue tells: jobs and their events as they are recorded, apart from the database's rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from adapters.errors import InvalidRequest
from adapters.registry.tables import now
from adapters.validation import first_problem, printable
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.tables import JobEventTable, JobTable

_MOST_MESSAGE = 4000
Stored = TypeVar("Stored", JobOrder, JobPlan)
_NEEDED = {
    JobOrder: ("model", "training_file"),
    JobPlan: ("task", "backbone", "adapter"),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now. ``attempt`` is that of the claim that runs it, or ran it last.

    ``unread`` is why this version can't read all of ``order`` and ``plan``, as another one has stored them: what can be
    read stands in them, which is good for being shown and not for being run. None if they are whole.
    """

    id: str
    namespace: str
    status: str
    is_paused: bool
    wish: str
    order: JobOrder
    plan: JobPlan
    unread: str | None
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
    order, unread = _read(JobOrder, row.order)
    plan, unread_plan = _read(JobPlan, row.plan)
    return Job(
        id=row.id,
        namespace=row.namespace,
        status=row.status,
        is_paused=row.is_paused,
        wish=row.wish,
        order=order,
        plan=plan,
        unread=unread or unread_plan,
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


def tell(
    session: Session,
    row: JobTable,
    message: str,
    level: str = "info",
    kind: str = "message",
    **data: Any,
) -> None:
    """Add a line to a job's history."""
    session.add(
        JobEventTable(
            job=row.id,
            level=level,
            kind=kind,
            # A run may quote what it read; PostgreSQL has no text with a NUL.
            message=message[:_MOST_MESSAGE].replace("\0", "\N{REPLACEMENT CHARACTER}"),
            data=data,
            created_at=now(),
        )
    )


def _read(kind: type[Stored], stored: dict[str, Any]) -> tuple[Stored, str | None]:
    """Return what can be read of a stored order or plan, and the first thing that can't be, if that is not all."""
    try:
        return kind.model_validate(stored), None
    except (ValidationError, InvalidRequest) as error:
        return _readable(kind, stored, error), _told(error)


def _readable(
    kind: type[Stored], stored: dict[str, Any], error: ValidationError | InvalidRequest
) -> Stored:
    """Return what is left without the fields at fault; '?' stands for one that can't be left out."""
    faulty = _faulty(error)
    kept = {name: value for name, value in stored.items() if name not in faulty}
    if len(kept) == len(stored):  # the fault is in none of them
        kept = {}
    try:
        return kind.model_validate(dict.fromkeys(_NEEDED[kind], "?") | kept)
    except (ValidationError, InvalidRequest) as other:  # those at fault are not all found at once
        return _readable(kind, kept, other)


def _faulty(error: ValidationError | InvalidRequest) -> set[str]:
    if isinstance(error, InvalidRequest):
        return {(error.param or "").partition(".")[0]}
    return {str(each["loc"][0]) for each in error.errors() if each["loc"]}


def _told(error: ValidationError | InvalidRequest) -> str:
    said = error.message if isinstance(error, InvalidRequest) else first_problem(error)[0]
    return printable(said)
