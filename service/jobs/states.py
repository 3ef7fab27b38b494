"""The lives of a job: which status follows which, and nowhere else."""

from __future__ import annotations

from enum import StrEnum

from adapters.errors import Conflict


class Status(StrEnum):
    QUEUED = "queued"  # and paused, if the job says so: OpenAI's words have none for it
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)
_NEXT = {
    Status.QUEUED: (Status.RUNNING, Status.CANCELLED, Status.FAILED),
    # Back to the queue: its worker died, or it was paused.
    Status.RUNNING: (Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED),
}


def check_move(job: str, before: str, after: Status) -> None:
    """Raise `Conflict` if a job can't go from one status to another."""
    if after not in _NEXT.get(Status(before), ()):
        raise Conflict(
            f"Job '{job}' is '{before}' and can't become '{after}'. Jobs that have ended stay as they are; order a "
            "new one.",
            param="fine_tuning_job_id",
        )
