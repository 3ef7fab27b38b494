"""The queue of jobs: ordered, claimed by one worker at a time, kept alive by it, ended. Status changes only here."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from adapters.errors import Conflict, NotFound
from adapters.reference import DEFAULT_NAMESPACE
from adapters.registry.database import Database
from adapters.registry.tables import now
from service.jobs.admission import check_quota, dumped, jobs_of, made_by
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.records import Job, JobEvent, event_of, job_of, tell
from service.jobs.states import ENDED, Status, check_move
from service.jobs.tables import JobEventTable, JobTable

_MOST_FAILURES = 3  # attempts whose worker or run died, before a job is given up
_FORGOTTEN_AT_ONCE = 100  # jobs: who writes meanwhile waits for as many
_READ_AT_ONCE = 200  # jobs: of which few may be looked for


class LostJob(Conflict):
    """The job is another worker's by now, or has ended: whoever runs it must stop."""


class JobQueue:
    """Jobs over the registry's database.

    A claim counts a job's ``attempt`` up; every later word of the worker names its attempt, so that one whose job was
    given to another is told so instead of being believed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unread: set[int] = set()  # numbers of waiting jobs that this version can't read

    def submit(
        self,
        order: JobOrder,
        plan: JobPlan,
        *,
        job: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        idempotency_key: str | None = None,
        most_active: int | None = None,
        key: str | None = None,
        most_of_key: int | None = None,
    ) -> Job:
        """Put an order into the queue; with a key that was used before, return the job that it made.

        Raises:
            Conflict: the key was used for another order.
            Overloaded: the namespace has ``most_active`` jobs that have not ended, or the API key ``most_of_key``.
        """
        jobs = jobs_of(namespace)
        must_wait = any(x is not None for x in (idempotency_key, most_active, most_of_key))
        with self._database.write() as session:
            if must_wait:
                self._database.take_turns(session, f"jobs of {namespace}")
            if idempotency_key is not None:
                made = made_by(session, order, namespace, idempotency_key)
                if made is not None:
                    return job_of(made)
            check_quota(session, jobs, most_active)
            check_quota(session, jobs.where(JobTable.key == key), most_of_key)
            row = JobTable(
                id=job or new_job_id(),
                namespace=namespace,
                key=key,
                status=Status.QUEUED,
                priority=order.resources.priority,
                order=dumped(order),
                plan=plan.model_dump(mode="json"),
                idempotency_key=idempotency_key,
                created_at=now(),
            )
            session.add(row)
            session.flush()
            tell(session, row, f"Created: it waits for a worker with launcher '{plan.launcher}'")
            for warning in plan.warnings:
                tell(session, row, warning, "warn")
            session.flush()
            return job_of(row)

    def made_by(
        self, order: JobOrder, idempotency_key: str, namespace: str = DEFAULT_NAMESPACE
    ) -> Job | None:
        """Return the job that an order made when it came with this key before; None if the key is new.

        Raises:
            Conflict: the key was used for another order.
        """
        with self._database.read() as session:
            made = made_by(session, order, namespace, idempotency_key)
            return None if made is None else job_of(made)

    def get(self, job: str, namespace: str | None = DEFAULT_NAMESPACE) -> Job:
        """Return a job; of any namespace, if that is None.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as session:
            return job_of(_find(session, job, namespace))

    def list_jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> list[Job]:
        """Return jobs, newest first, those ordered before the job ``after``."""
        with self._database.read() as session:
            query = jobs_of(namespace).order_by(JobTable.number.desc())
            if after is not None:
                query = query.where(JobTable.number < _find(session, after, namespace).number)
            if not metadata:
                return [job_of(row) for row in session.scalars(query.limit(limit))]
            wanted = metadata.items()
            rows = session.scalars(query.execution_options(yield_per=_READ_AT_ONCE))
            found = (row for row in rows if wanted <= (row.order.get("metadata") or {}).items())
            return [job_of(row) for row in islice(found, limit)]

    def list_events(
        self, job: str, *, after: int | None = None, before: int | None = None, limit: int = 100
    ) -> list[JobEvent]:
        """Return a job's events between two numbers: the first after one, else the last; in order."""
        query = select(JobEventTable).where(JobEventTable.job == job).limit(limit)
        if before is not None:
            query = query.where(JobEventTable.number < before)
        with self._database.read() as session:
            if after is not None:
                query = query.where(JobEventTable.number > after)
                return [
                    event_of(row) for row in session.scalars(query.order_by(JobEventTable.number))
                ]
            rows = session.scalars(query.order_by(JobEventTable.number.desc()))
            return [event_of(row) for row in reversed(list(rows))]

    def cancel(self, job: str, namespace: str = DEFAULT_NAMESPACE) -> Job:
        """End a job that waits; ask the worker of one that runs to end it."""
        with self._changed(job, namespace) as (session, row):
            if row.status == Status.RUNNING:
                row.wish = "cancel"
                tell(session, row, "It is to be cancelled")
            else:
                _end(session, row, Status.CANCELLED, "Cancelled")
            return job_of(row)

    def pause(self, job: str, namespace: str = DEFAULT_NAMESPACE) -> Job:
        """Keep a job that waits from being claimed; ask the worker of one that runs to stop it, with a checkpoint.

        Raises:
            Conflict: it has ended.
        """
        with self._changed(job, namespace) as (session, row):
            if row.status in ENDED:
                check_move(row.id, row.status, Status.QUEUED)
            if row.status == Status.RUNNING:
                row.wish = row.wish or "pause"
                tell(session, row, "It is to be paused")
            elif not row.is_paused:
                row.is_paused = True
                tell(session, row, "Paused")
            return job_of(row)

    def resume(self, job: str, namespace: str = DEFAULT_NAMESPACE) -> Job:
        """Let a paused job be claimed again; it goes on from its checkpoint.

        Raises:
            Conflict: it has ended.
        """
        with self._changed(job, namespace) as (session, row):
            if row.status in ENDED:
                check_move(row.id, row.status, Status.QUEUED)
            if row.wish == "pause":
                row.wish = ""
            if row.is_paused:
                row.is_paused = False
                tell(session, row, "Resumed: it waits for a worker")
            return job_of(row)

    def claim(self, worker: str, launchers: Collection[str] | None = None) -> Job | None:
        """Give a worker the job that is next: of those with the highest priority, the oldest; None if none waits.

        One that this version can't read is left to workers that can.

        Args:
            launchers: that the worker has; jobs for others are left to others. All if None.
        """
        waiting = (
            select(JobTable)
            .where(JobTable.status == Status.QUEUED, JobTable.is_paused.is_(False))
            .order_by(JobTable.priority.desc(), JobTable.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if launchers is not None:
            waiting = waiting.where(JobTable.plan["launcher"].as_string().in_(launchers))
        with self._database.write() as session:
            row = self._readable(session, waiting, worker)
            if row is None:
                return None
            check_move(row.id, row.status, Status.RUNNING)
            row.status, row.worker, row.wish = Status.RUNNING, worker, ""
            row.attempt += 1
            row.started_at = row.started_at or now()
            tell(session, row, f"Attempt {row.attempt} begins", worker=worker)
            return job_of(row)

    def take_over(self, job: str, attempt: int, beats: int, worker: str) -> Job | None:
        """Give a worker a running job whose own worker has not counted since ``beats``; None if it has."""
        with self._changed(job, None) as (session, row):
            is_still = (row.status, row.attempt, row.beats) == (Status.RUNNING, attempt, beats)
            if not is_still:
                return None
            row.attempt += 1
            row.worker = worker
            tell(
                session,
                row,
                "Its worker is gone; another one takes over",
                level="warn",
                worker=worker,
            )
            return job_of(row)

    def count(self) -> dict[str, int]:
        """Return how many jobs have each status, in all namespaces."""
        query = select(JobTable.status, func.count()).group_by(JobTable.status)
        with self._database.read() as session:
            found = dict(session.execute(query).tuples().all())
        return {status.value: found.get(status, 0) for status in Status}

    def has_work(self, launchers: Collection[str]) -> bool:
        """Tell whether a job for one of these launchers waits or is run, of all namespaces."""
        query = select(JobTable.id).where(
            JobTable.status.in_((Status.QUEUED, Status.RUNNING)),
            JobTable.is_paused.is_(False),
            JobTable.plan["launcher"].as_string().in_(launchers),
        )
        with self._database.read() as session:
            return session.scalar(query.limit(1)) is not None

    def running(self) -> list[Job]:
        """Return all jobs that are being run, of all namespaces."""
        with self._database.read() as session:
            query = select(JobTable).where(JobTable.status == Status.RUNNING)
            return [job_of(row) for row in session.scalars(query)]

    def beat(
        self,
        job: str,
        attempt: int,
        *,
        events: Sequence[dict[str, Any]] = (),
        progress: dict[str, Any] | None = None,
        handle: dict[str, Any] | None = None,
    ) -> Job:
        """Count that a job's worker lives, with what it has to tell; returns the job with what is wished of it.

        Args:
            events: ``{"level", "kind", "message", "data"}`` each.

        Raises:
            LostJob: it is not this attempt's any more.
        """
        with self._mine(job, attempt) as (session, row):
            row.beats += 1
            row.progress = progress or row.progress
            row.handle = handle or row.handle
            for event in events:
                tell(session, row, event["message"], event["level"], event["kind"], **event["data"])
            return job_of(row)

    def succeed(self, job: str, attempt: int, result: dict[str, Any], model: str, told: str) -> Job:
        with self._mine(job, attempt) as (session, row):
            row.result, row.fine_tuned_model = result, model
            _end(session, row, Status.SUCCEEDED, told, model=model)
            return job_of(row)

    def fail(
        self, job: str, attempt: int, code: str, message: str, param: str | None = None
    ) -> Job:
        with self._mine(job, attempt) as (session, row):
            row.error = {"code": code, "message": message, "param": param}
            _end(session, row, Status.FAILED, message, level="error", code=code)
            return job_of(row)

    def stop(self, job: str, attempt: int, *, cancelled: bool) -> Job:
        """Record that a run was stopped as wished: for good, or paused; a cancel that came after the pause counts."""
        with self._mine(job, attempt) as (session, row):
            if cancelled or row.wish == "cancel":
                _end(session, row, Status.CANCELLED, "Cancelled")
            else:
                _back(session, row, "Stopped, with a checkpoint")
            return job_of(row)

    def give_back(self, job: str, attempt: int, why: str, *, is_failure: bool) -> Job:
        """Return a job to the queue, to go on from its checkpoint; one that failed too often ends as failed."""
        with self._mine(job, attempt) as (session, row):
            row.num_failures += is_failure
            if row.wish == "cancel":  # it came while the run was ending by itself
                _end(session, row, Status.CANCELLED, "Cancelled")
            elif row.num_failures >= _MOST_FAILURES:
                told = f"Given up after '{row.num_failures}' attempts that died: {why}"
                row.error = {"code": "worker_lost", "message": told, "param": None}
                _end(session, row, Status.FAILED, told, level="error")
            else:
                _back(
                    session,
                    row,
                    f"Back in the queue: {why}",
                    level="warn" if is_failure else "info",
                )
            return job_of(row)

    def forget(self, before: datetime) -> list[str]:
        """Remove jobs that ended before a moment, with their events, some if they are many; returns their ids."""
        old = (
            select(JobTable.id).where(JobTable.finished_at < before).order_by(JobTable.finished_at)
        )
        some = old.limit(_FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True)
        with self._database.write() as session:
            ids = list(session.scalars(some))
            session.execute(delete(JobEventTable).where(JobEventTable.job.in_(ids)))
            session.execute(delete(JobTable).where(JobTable.id.in_(ids)))
            return ids

    def _readable(
        self, session: Session, waiting: Select[JobTable], worker: str
    ) -> JobTable | None:
        """Return the first of the jobs that can be read; those before it are told so, once a process."""
        while True:
            if self._unread:
                waiting = waiting.where(JobTable.number.not_in(self._unread))
            row = session.scalar(waiting)
            if row is None or (unread := job_of(row).unread) is None:
                return row
            self._unread.add(row.number)
            told = (
                f"Worker '{worker}' can't read this order, which another version of Headstock has stored ({unread}). "
                "It waits for one that can; else cancel it, and order it anew"
            )
            tell(session, row, told, "warn")

    @contextmanager
    def _changed(self, job: str, namespace: str | None) -> Iterator[tuple[Session, JobTable]]:
        with self._database.write() as session:
            yield session, _find(session, job, namespace, locks=True)

    @contextmanager
    def _mine(self, job: str, attempt: int) -> Iterator[tuple[Session, JobTable]]:
        with self._changed(job, None) as (session, row):
            if row.status != Status.RUNNING or row.attempt != attempt:
                raise LostJob(f"Job '{job}' is not run by attempt '{attempt}' any more.")
            yield session, row


def new_job_id() -> str:
    return f"ftjob-{uuid.uuid4().hex}"


def _find(session: Session, job: str, namespace: str | None, *, locks: bool = False) -> JobTable:
    query = select(JobTable).where(JobTable.id == job)
    if namespace is not None:
        query = query.where(JobTable.namespace == namespace)
    row = session.scalar(query.with_for_update() if locks else query)
    if row is None:
        raise NotFound(
            f"No job '{job}'. GET /v1/fine_tuning/jobs lists them.", param="fine_tuning_job_id"
        )
    return row


def _end(session: Session, row: JobTable, status: Status, told: str, **more: Any) -> None:
    check_move(row.id, row.status, status)
    row.status, row.finished_at, row.is_paused, row.wish = status, now(), False, ""
    row.handle = None
    tell(session, row, told, **more)


def _back(session: Session, row: JobTable, told: str, level: str = "info") -> None:
    check_move(row.id, row.status, Status.QUEUED)
    # What was wished last counts: a pause that was taken back meanwhile is none.
    row.is_paused = row.wish == "pause"
    row.status, row.wish, row.handle = Status.QUEUED, "", None
    tell(session, row, told + "; paused" if row.is_paused else told, level)
