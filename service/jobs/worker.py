"""A worker: takes jobs from the queue one by one, has them run, tells what happens, registers what comes of them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import HeadstockError, StorageFull, Unavailable
from adapters.registry.registry import Registry
from service.jobs.attempts import Attempt
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue, LostJob
from service.jobs.records import Job
from service.jobs.retention import Retention
from service.launchers.base import Launcher
from service.machine import is_gone, machine_name

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
_UNAVAILABLE_SECONDS = 5.0  # before anything is tried again
_COLLECT_SECONDS = 3600.0
LEASE_SECONDS = 20.0  # without a beat, a job's worker is taken for dead


@dataclass(frozen=True, slots=True)
class Workplace:
    """All that a worker works with.

    Args:
        home: where runs have their folders, ``jobs/ID``, and backbones are.
        threads: of a run that does not say.
        timeout_seconds: of a run that does not say; None for no bound.
    """

    queue: JobQueue
    files: Files
    objects: ObjectStore
    registry: Registry
    launchers: Mapping[str, Launcher]
    home: Path
    threads: int = 1
    timeout_seconds: float | None = None
    retention: Retention = field(default_factory=Retention)


class Worker:
    """Runs one job at a time until it is told to stop.

    Args:
        idle_seconds: after so long without a job that waits or is run it stops by itself; None for never.
    """

    def __init__(
        self,
        place: Workplace,
        *,
        poll_seconds: float = POLL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        idle_seconds: float | None = None,
    ) -> None:
        self.name = f"{machine_name()}-{os.getpid()}"
        self._place = place
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._idle_seconds = idle_seconds
        self._busy_at = time.monotonic()
        self._stopping = threading.Event()
        self._collected_at: float | None = None
        # When a running job's count was last seen to change, by this process's own clock: clocks on walls jump.
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def stop(self) -> None:
        """Let the run that goes on save a checkpoint, give its job back, and let `run` return."""
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._collect()
                job = self._next()
                if job is None and self._is_needless():
                    return
            except Unavailable as error:
                logger.warning("%s", error.message)
                job = None
            if job is None:
                self._stopping.wait(self._poll_seconds)
            else:
                self._work(job)
                self._busy_at = time.monotonic()

    def _next(self) -> Job | None:
        return self._abandoned() or self._place.queue.claim(self.name, self._place.launchers)

    def _is_needless(self) -> bool:
        """Tell whether there was no work for so long that the worker is to stop; what others run may become its own."""
        if self._idle_seconds is None:
            return False
        now = time.monotonic()
        if self._place.queue.has_work(self._place.launchers):
            self._busy_at = now
        return now - self._busy_at > self._idle_seconds

    def _collect(self) -> None:
        """Remove what is too old, now and then; what can't be removed keeps no job waiting."""
        if self._collected_at is None or time.monotonic() - self._collected_at > _COLLECT_SECONDS:
            self._collected_at = time.monotonic()
            place = self._place
            try:
                place.retention.collect(place.queue, place.files, place.objects, place.home)
            except Exception:
                logger.exception("What is old was not all removed")

    def _abandoned(self) -> Job | None:
        """Take over a running job whose worker has not counted for a lease; of this machine's dead ones at once."""
        # As in a claim, others are left to workers that have their launchers, and can read them.
        ours, running = self._place.launchers, self._place.queue.running()
        running = [j for j in running if j.plan.launcher in ours and j.unread is None]
        self._seen = {j.id: self._seen[j.id] for j in running if j.id in self._seen}
        for job in running:
            count, now = (job.attempt, job.beats), time.monotonic()
            if self._seen.get(job.id, (None, 0))[0] != count:
                self._seen[job.id] = (count, now)
            is_silent = now - self._seen[job.id][1] > self._lease_seconds
            if is_silent or _is_dead(job.worker):
                taken = self._place.queue.take_over(job.id, *count, self.name)
                if taken is not None:
                    return taken
        return None

    def _work(self, job: Job) -> None:
        logger.info("%s: attempt %d", job.id, job.attempt)
        attempt = Attempt(self._place, job, self._stopping, self._poll_seconds)
        try:
            self._see_through_or_leave(attempt)
        except Unavailable as error:
            # The job stays this worker's as long as it counts; then another's.
            logger.warning("%s: left as it is: %s", job.id, error.message)
            self._stopping.wait(_UNAVAILABLE_SECONDS)
        except Exception:
            logger.exception("%s: left as it is", job.id)

    def _see_through_or_leave(self, attempt: Attempt) -> None:
        try:
            self._see_through(attempt)
        except LostJob as error:
            logger.warning("%s", error.message)
            attempt.leave()

    def _see_through(self, attempt: Attempt) -> None:
        try:
            attempt.run()
        except (LostJob, Unavailable):
            raise
        except StorageFull as error:
            logger.warning("%s", error.message)
            attempt.give_back(error.message, is_failure=False)  # room comes back, as a store does
            self._stopping.wait(_UNAVAILABLE_SECONDS)
        except HeadstockError as error:
            logger.warning("%s", error.message)
            attempt.fail(error)
        except Exception as error:
            logger.exception("An attempt failed")
            attempt.give_back(f"{type(error).__name__}: {error}")


def _is_dead(worker: str) -> bool:
    machine, _, pid = worker.rpartition("-")
    return is_gone(machine, pid)
