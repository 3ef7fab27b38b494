"""Files, jobs and events as the ``openai`` package reads them (3.57.0), with our own keys beside OpenAI's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from service.jobs.files import StoredFile
from service.jobs.records import Job, JobEvent
from service.jobs.states import Status

_ORGANIZATION = "local"


def file_body(file: StoredFile) -> dict[str, Any]:
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


def job_body(job: Job) -> dict[str, Any]:
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


def event_body(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event_id(event.number),
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.created_at),
        "level": event.level,
        "type": event.kind,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_bodies(job: Job) -> list[dict[str, Any]]:
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


def page(bodies: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    ends = {"first_id": bodies[0]["id"], "last_id": bodies[-1]["id"]} if bodies else {}
    return {"object": "list", "data": list(bodies), "has_more": has_more, **ends}


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
