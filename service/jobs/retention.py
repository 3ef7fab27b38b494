"""What of ended jobs and of files is kept, and for how long."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from adapters.errors import Conflict, NotFound, StorageFull, Unavailable
from adapters.registry.tables import now
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """Days after which things go; None keeps them.

    Args:
        job_days: records, events, logs and reports of jobs, since they ended; what was estimated of runs.
        file_days: files of examples, since they were sent, unless a job that has not ended needs them.
    """

    job_days: float | None = None
    file_days: float | None = None

    def collect(self, queue: JobQueue, files: Files, objects: ObjectStore, home: Path) -> None:
        """Remove what is older; what another worker removes meanwhile is nobody's loss."""
        if self.job_days is not None:
            while jobs := queue.forget(_ago(self.job_days)):
                for job in jobs:
                    with _warning(f"report and log of {job}"):
                        objects.remove(f"jobs/{job}")
                    logger.info("%s: forgotten", job)
            with _warning("old estimates"):
                objects.remove_older("estimates", _ago(self.job_days))
        if self.file_days is not None:
            for file, namespace in files.sent_before(_ago(self.file_days)):
                try:
                    files.delete(file, namespace)
                except (Conflict, NotFound):
                    continue
        _remove_folders(queue, home)


@contextmanager
def _warning(what: str) -> Iterator[None]:
    """Leave in the store what it does not let go of: the rest must go all the same."""
    try:
        yield
    except (StorageFull, Unavailable) as error:
        logger.warning("The %s are left in the store: %s", what, error.message)


def _remove_folders(queue: JobQueue, home: Path) -> None:
    """Remove this machine's folders of jobs that are not on record any more."""
    for folder in (home / "jobs").glob("ftjob-*"):
        try:
            queue.get(folder.name, None)
        except NotFound:
            shutil.rmtree(folder, ignore_errors=True)


def _ago(days: float) -> datetime:
    return now() - timedelta(days=days)
