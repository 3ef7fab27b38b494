"""OpenAI's ``/v1/files``: examples are sent once, checked as they come, and named by their id."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from adapters.errors import InvalidRequest
from adapters.validation import shown
from service.access.callers import Who
from service.jobs.checking import check_upload
from service.jobs.files import Files, plain_name
from service.protocols.fine_tuning import DeletedFile, FileAnswer, Page, file_answer, page
from service.routes.answers import upload
from service.settings import Settings
from service.threads import in_slow_thread
from service.uploads import receive

_PURPOSE = "fine-tune"
Limit = Annotated[int, Query(ge=1, le=10_000)]


def files_router(files: Files, settings: Settings, call_workers: Callable[[], None]) -> APIRouter:
    """Return the routes.

    Args:
        call_workers: has workers there, if this server is to start them.
    """
    router = APIRouter(prefix="/v1/files", tags=["files"])

    @router.post("", openapi_extra=upload({"purpose": f"'{_PURPOSE}'"}, "purpose"))
    async def create_file(request: Request, who: Who) -> FileAnswer:
        """Store the file of examples in a form's ``file``; bad lines refuse it, and are named."""
        with tempfile.TemporaryDirectory(prefix="headstock-file-") as scratch:
            received = Path(scratch) / "received"
            fields = await receive(
                *(request.headers, request.stream(), received, settings.max_file_bytes),
                name_field="filename",
            )
            purpose = fields.get("purpose")
            if purpose != _PURPOSE:
                said = (
                    "There is no field 'purpose'"
                    if purpose is None
                    else f"purpose is {shown(purpose)}"
                )
                raise InvalidRequest(
                    f"{said}; files are taken for '{_PURPOSE}'. Send purpose={_PURPOSE}.",
                    param="purpose",
                )
            name = plain_name(fields.get("filename", ""))
            path = received.rename(Path(scratch) / name)
            call_workers()  # an order mostly follows
            report = await check_upload(path)
            stored = await in_slow_thread(files.create, path, name, purpose, report, who.namespace)
        return file_answer(stored)

    @router.get("")
    async def list_files(
        who: Who, after: str | None = None, limit: Limit = 100, purpose: str | None = None
    ) -> Page[FileAnswer]:
        found = await asyncio.to_thread(
            files.list_files, after=after, limit=limit + 1, purpose=purpose, namespace=who.namespace
        )
        return page([file_answer(file) for file in found[:limit]], has_more=len(found) > limit)

    @router.get("/{file}")
    async def get_file(file: str, who: Who) -> FileAnswer:
        return file_answer(await asyncio.to_thread(files.get, file, who.namespace))

    @router.get("/{file}/content")
    async def get_content(file: str, who: Who) -> FileResponse:
        stored = await asyncio.to_thread(files.get, file, who.namespace)
        scratch = tempfile.TemporaryDirectory(prefix="headstock-file-")
        path = await in_slow_thread(files.fetch, file, Path(scratch.name), who.namespace)
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=stored.filename,
            background=BackgroundTask(scratch.cleanup),
        )

    @router.delete("/{file}")
    async def delete_file(file: str, who: Who) -> DeletedFile:
        await asyncio.to_thread(files.delete, file, who.namespace)
        return {"id": file, "object": "file", "deleted": True}

    return router
