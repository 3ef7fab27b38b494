"""R3: how many jobs a second workers claim, each worker a process, until none waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, text

from adapters.errors import Unavailable
from adapters.reference import DEFAULT_NAMESPACE
from adapters.registry.database import Database
from adapters.registry.tables import now
from benchmarks.report import Measurement, measure
from benchmarks.rounds import run_rounds
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.queue import JobQueue, new_job_id
from service.jobs.states import Status
from service.jobs.tables import JobEventTable, JobTable

if TYPE_CHECKING:  # it loads torch, which each worker's process would do as well
    from benchmarks.session import Session

NUM_WORKERS, NUM_JOBS = 8, 1200
NUM_ENDED = 10_000  # jobs of earlier days, which a claim must not look through
_MEETING_SECONDS = 120.0
_MANY = 1000  # rows that are inserted at once
_meeting: Barrier | None = None  # of this process, if it is a worker's


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a worker got, when it began and ended, and how often the database was locked for longer than it waits."""

    jobs: list[str]
    begin: float
    end: float
    num_refused: int


@dataclass(frozen=True, slots=True)
class Round:
    """Jobs claimed a second, and how many claims were refused."""

    rate: float
    num_refused: int


def run_claiming(session: Session, urls: Mapping[str, str]) -> list[Measurement]:
    """Return rates of claims; a job claimed twice, or not at all, ends the benchmark."""
    num_jobs = session.options.full_or_quick(NUM_JOBS, 20)
    num_ended = session.options.full_or_quick(NUM_ENDED, 20)
    num_workers = session.options.full_or_quick(NUM_WORKERS, 2)
    databases = {name: Database(url) for name, url in urls.items()}
    for database in databases.values():
        _insert(database, [_row(Status.SUCCEEDED) for _ in range(num_ended)])
    context = get_context("spawn")
    start = (context.Barrier(num_workers),)
    with ProcessPoolExecutor(num_workers, context, _join, start) as pool:

        def run(name: str, _: int) -> Round:
            claims = [partial(claim_all, urls[name], f"worker-{i}") for i in range(num_workers)]
            return _round(pool, claims, databases[name], num_jobs)

        for name in urls:
            run(name, 0)  # processes start, connections open
        runs = run_rounds({name: partial(run, name) for name in urls}, session.options.runs)
    for database in databases.values():
        database.close()
    for name, rounds in runs.items():
        if num_refused := sum(each.num_refused for each in rounds):
            session.note(
                f"R3: {name} was locked for too long for {num_refused} claims, made again."
            )
    workload = f"R3 claims by {num_workers} workers"
    return [
        measure(workload, name, 0, "jobs/s", [each.rate for each in runs[name]]) for name in urls
    ]


def _round(
    pool: ProcessPoolExecutor,
    claims: Sequence[Callable[[], Claimed]],
    database: Database,
    num_jobs: int,
) -> Round:
    rows = [_row(Status.QUEUED) for _ in range(num_jobs)]
    _insert(database, rows)
    tasks = [pool.submit(claim) for claim in claims]
    workers = [task.result() for task in tasks]
    jobs = [job for worker in workers for job in worker.jobs]
    if sorted(jobs) != sorted(row["id"] for row in rows):
        raise RuntimeError(
            f"Of {num_jobs} jobs, {len(set(jobs))} were claimed, in {len(jobs)} claims"
        )
    _forget(database, jobs)
    seconds = max(each.end for each in workers) - min(each.begin for each in workers)
    return Round(num_jobs / seconds, sum(each.num_refused for each in workers))


def _join(meeting: Barrier) -> None:
    global _meeting
    _meeting = meeting


def claim_all(url: str, worker: str) -> Claimed:
    """Claim jobs until none waits, from when all workers are ready; runs in a worker's process."""
    queue, jobs, num_refused, is_empty = _queue(url), list[str](), 0, False
    assert _meeting is not None
    _meeting.wait(_MEETING_SECONDS)
    begin = time.monotonic()
    while not is_empty:
        try:
            job = queue.claim(worker)
        except Unavailable:  # a worker tries again as well
            num_refused += 1
            continue
        if job is not None:
            jobs.append(job.id)
        is_empty = job is None
    return Claimed(jobs, begin, time.monotonic(), num_refused)


@cache
def _queue(url: str) -> JobQueue:
    return JobQueue(Database(url))


def _row(status: Status) -> dict[str, Any]:
    order = JobOrder(
        model="smollm2-135m-instruct",
        training_file="file-0123456789abcdef0123456789abcdef",
        suffix="intents",
        metadata={"team": "search"},
    )
    plan = JobPlan(
        task="text-classification", backbone="0" * 64, adapter="intents", rows={"train": 9003}
    )
    return {
        "id": new_job_id(),
        "namespace": DEFAULT_NAMESPACE,
        "status": status,
        "order": order.model_dump(mode="json", by_alias=True),
        "plan": plan.model_dump(mode="json"),
        "finished_at": now() if status == Status.SUCCEEDED else None,
    }


def _insert(database: Database, rows: list[dict[str, Any]]) -> None:
    """Put jobs into the queue as `JobQueue.submit` does, in bulk."""
    told = {"level": "info", "kind": "message", "message": "Created: it waits for a worker"}
    with database.write() as session:
        for some in _parts(rows):
            session.execute(insert(JobTable), some)
            events = [{**told, "job": row["id"]} for row in some]
            session.execute(insert(JobEventTable), events)
        if database.is_shared:  # PostgreSQL does so by itself within a minute
            session.execute(text("ANALYZE jobs"))


def _forget(database: Database, jobs: list[str]) -> None:
    with database.write() as session:
        for some in _parts(jobs):
            session.execute(delete(JobEventTable).where(JobEventTable.job.in_(some)))
            session.execute(delete(JobTable).where(JobTable.id.in_(some)))


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(items), _MANY):
        yield items[begin : begin + _MANY]
