"""What a job's run left to be read: its report as a page, and its log."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from adapters.errors import NotFound
from service.access.callers import Caller, Who
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue
from service.jobs.run_folders import LOG_NAME
from service.threads import in_slow_thread
from training.contract import PAGE_NAME

# The page has words of its data in it: whatever they say, nothing of it runs or is loaded.
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


def reports_router(queue: JobQueue, objects: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @router.get("/{job}/report")
    async def get_report(job: str, who: Who) -> FileResponse:
        """Return the report of a job that has ended, a page that needs nothing else."""
        headers = {"Content-Security-Policy": _PAGE_POLICY}
        return await send(job, PAGE_NAME, "text/html; charset=utf-8", headers, who)

    @router.get("/{job}/log")
    async def get_log(job: str, who: Who) -> FileResponse:
        """Return what the runs of a job that has ended wrote, errors with their traces among it."""
        return await send(job, LOG_NAME, "text/plain; charset=utf-8", {}, who)

    async def send(
        job: str, name: str, media_type: str, headers: dict[str, str], who: Caller
    ) -> FileResponse:
        found = await asyncio.to_thread(queue.get, job, who.namespace)
        scratch = tempfile.TemporaryDirectory(prefix="headstock-report-")
        path = Path(scratch.name) / name
        if not await in_slow_thread(objects.get, f"jobs/{found.id}/{name}", path):
            scratch.cleanup()
            raise NotFound(
                f"Job '{job}' is '{found.status}' and has no {name}: it comes when the job has ended, and stays for "
                "HEADSTOCK_JOB_DAYS.",
                param="job",
            )
        return FileResponse(
            path,
            media_type=media_type,
            headers={"X-Content-Type-Options": "nosniff", **headers},
            background=BackgroundTask(scratch.cleanup),
        )

    return router
