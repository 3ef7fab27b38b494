"""Files, jobs and events as the ``openai`` package reads them (3.57.0), with our own keys beside OpenAI's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict

from service.jobs.files import StoredFile
from service.jobs.orders import JobPlan
from service.jobs.records import Job, JobEvent
from service.jobs.states import Status
from training.contract import Band, Estimate

_ORGANIZATION = "local"


class _Identified(TypedDict):
    id: str


T = TypeVar("T", bound=_Identified)


class FileAnswer(TypedDict):
    """A file of examples; ``report`` is what its check found."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    report: dict[str, Any] | None


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: bool


class JobAnswer(TypedDict):
    """A job; moments are in seconds since 1970. From ``paused`` on, the keys are ours."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    trained_tokens: int | None
    result_files: list[str]
    integrations: list[Any]
    metadata: dict[str, str]
    error: dict[str, Any] | None
    paused: bool
    unread: str | None  # what of the order this server can't read; all else stands as it is
    task: dict[str, Any]
    adapter: str
    resources: dict[str, Any]
    attempt: int
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    seconds: dict[str, float] | None
    peak_bytes: int | None
    estimate: dict[str, Any] | None


class EventAnswer(TypedDict):
    """A line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


class CheckpointAnswer(TypedDict):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str | None
    step_number: int
    metrics: dict[str, Any]


class EstimateAnswer(TypedDict):
    """What a job would take: bands of seconds and bytes, measured; ``fits`` into the memory there is."""

    object: Literal["fine_tuning.job.estimate"]
    task: str
    rows: dict[str, int]
    steps: int
    tokens: int
    seconds: Band
    seconds_by_stage: dict[str, Band]
    peak_bytes: Band
    fits: bool
    warnings: list[str]


class Page(TypedDict, Generic[T]):
    """One of OpenAI's pages; the next one begins ``after`` its ``last_id``."""

    object: Literal["list"]
    data: list[T]
    has_more: bool
    first_id: NotRequired[str]
    last_id: NotRequired[str]


def file_answer(file: StoredFile) -> FileAnswer:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": _seconds(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "report": file.report,
    }


def job_answer(job: Job) -> JobAnswer:
    order, result = job.order, job.result or {}
    chosen = order.chosen.model_dump()
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": _seconds(job.created_at),
        "finished_at": None if job.finished_at is None else _seconds(job.finished_at),
        "estimated_finish": _estimated_finish(job),
        "model": order.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": _ORGANIZATION,
        "status": job.status,
        "training_file": order.training_file,
        "validation_file": order.validation_file,
        "hyperparameters": chosen,
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        "seed": order.seed if order.seed is not None else order.training.seed,
        "trained_tokens": result.get("num_tokens"),
        "result_files": [],
        "integrations": [],
        "metadata": order.metadata or {},
        "error": job.error,
        "paused": job.is_paused,
        "unread": job.unread,
        "task": {"type": job.plan.task, "rows": job.plan.rows},
        "adapter": job.plan.adapter,
        "resources": {**order.resources.model_dump(), "launcher": job.plan.launcher},
        "attempt": job.attempt,
        "progress": job.progress,
        "metrics": result.get("metrics"),
        "seconds": result.get("seconds"),
        "peak_bytes": result.get("peak_bytes"),
        "estimate": result.get("estimate"),
    }


def event_answer(event: JobEvent) -> EventAnswer:
    return {
        "id": event_id(event.number),
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.created_at),
        "level": event.level,
        "type": event.kind,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_answers(job: Job) -> list[CheckpointAnswer]:
    """Return the weights that are kept of a job, as checkpoints: the best ones, which its version holds."""
    result = job.result
    if result is None or job.finished_at is None:
        return []
    step = result.get("best_step")
    validation = result.get("metrics", {}).get("validation", {})
    return [
        {
            "id": f"ftckpt-{job.id.removeprefix('ftjob-')}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": _seconds(job.finished_at),
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": job.fine_tuned_model,
            "step_number": step or 0,
            "metrics": {"step": step, **{f"valid_{name}": n for name, n in validation.items()}},
        }
    ]


def estimate_answer(plan: JobPlan, estimate: Estimate, room: int | None) -> EstimateAnswer:
    """Args:
    room: bytes of memory that are free, if that is known.
    """
    return {
        "object": "fine_tuning.job.estimate",
        "task": plan.task,
        "rows": plan.rows,
        "steps": estimate.num_steps,
        "tokens": estimate.num_tokens,
        "seconds": estimate.total_seconds,
        "seconds_by_stage": estimate.seconds,
        "peak_bytes": estimate.peak_bytes,
        "fits": room is None or estimate.peak_bytes.high <= room,
        "warnings": plan.warnings,
    }


def page(answers: Sequence[T], *, has_more: bool) -> Page[T]:
    found: Page[T] = {"object": "list", "data": list(answers), "has_more": has_more}
    if answers:
        found |= {"first_id": answers[0]["id"], "last_id": answers[-1]["id"]}
    return found


def event_id(number: int) -> str:
    return f"ftevent-{number}"


def event_number(text: str) -> int | None:
    """Return the number in an event's id, or in a bare one; None if it is neither."""
    digits = text.removeprefix("ftevent-")
    return int(digits) if digits.isdecimal() and len(digits) < 19 else None


def _estimated_finish(job: Job) -> int | None:
    left = (job.progress or {}).get("eta_seconds")
    return int(time.time() + left) if job.status == Status.RUNNING and left is not None else None


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
