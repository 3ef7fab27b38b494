"""The registry over HTTP: adapters and their versions."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.errors import InvalidRequest
from adapters.reference import Reference, check_name
from adapters.registry.notes import check_note
from adapters.registry.records import Adapter, Alias, Version
from adapters.registry.registry import Registry
from adapters.validation import first_problem
from service.archives import unpack
from service.uploads import receive

MAX_VERSION = 10**9


Number = Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]


class TargetBody(BaseModel):
    """What a version is to be called: from the URL or, in a form, its fields."""

    model_config = ConfigDict(extra="forbid")

    name: str
    note: str = ""


class NotesBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: str | None = None
    tags: dict[str, str] | None = None


def adapters_router(registry: Registry, max_bundle_bytes: int) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

    @router.get("")
    async def list_adapters() -> dict[str, Any]:
        adapters = await asyncio.to_thread(registry.list_adapters)
        return {"adapters": [adapter_body(adapter) for adapter in adapters]}

    @router.post("", status_code=201)
    async def create_version(
        request: Request, name: str | None = None, note: str | None = None
    ) -> dict[str, Any]:
        """Store the bundle in the body, a tar or zip file or a form with one, as the next version of ``name``."""
        if name is not None:
            check_name(name, what="adapter name")
        with tempfile.TemporaryDirectory(prefix="headstock-upload-") as scratch:
            archive, folder = Path(scratch) / "archive", Path(scratch) / "bundle"
            folder.mkdir()
            fields = await receive(request.headers, request.stream(), archive, max_bundle_bytes)
            fields |= {k: v for k, v in (("name", name), ("note", note)) if v is not None}
            target = _target(fields)
            await asyncio.to_thread(unpack, archive, folder, max_bundle_bytes)
            version = await asyncio.to_thread(
                registry.create_version, target.name, folder, note=target.note
            )
        return version_body(version)

    @router.get("/{name}")
    async def get_adapter(name: str) -> dict[str, Any]:
        adapter = await asyncio.to_thread(registry.get_adapter, name)
        versions = await asyncio.to_thread(registry.list_versions, name)
        return {**adapter_body(adapter), "versions": [version_body(each) for each in versions]}

    @router.get("/{name}/versions/{number}")
    async def get_version(name: str, number: Number) -> dict[str, Any]:
        reference = Reference(name, version=number)
        return version_body(await asyncio.to_thread(registry.resolve, reference))

    @router.patch("/{name}/versions/{number}")
    async def annotate(name: str, number: Number, body: NotesBody) -> dict[str, Any]:
        """Replace a version's note or tags; what is left out stays."""
        return version_body(
            await asyncio.to_thread(registry.annotate, name, number, note=body.note, tags=body.tags)
        )

    @router.delete("/{name}/versions/{number}")
    async def delete_version(name: str, number: Number, force: bool = False) -> dict[str, Any]:
        """Delete a version; ``force`` takes away the aliases that point at it. Requests in flight finish."""
        await asyncio.to_thread(registry.delete_version, name, number, force=force)
        return {"name": name, "version": number, "deleted": True}

    @router.delete("/{name}")
    async def delete_adapter(name: str, force: bool = False) -> dict[str, Any]:
        """Delete all versions of an adapter; ``force`` takes away its aliases."""
        await asyncio.to_thread(registry.delete_adapter, name, force=force)
        return {"name": name, "deleted": True}

    return router


def _target(fields: dict[str, str]) -> TargetBody:
    try:
        target = TargetBody.model_validate(fields)
    except ValidationError as error:
        message, param = first_problem(error)
        raise InvalidRequest(f"Of the upload, {message}", param=param) from error
    check_name(target.name, what="adapter name")
    check_note(target.note)
    return target


def adapter_body(adapter: Adapter) -> dict[str, Any]:
    aliases = {alias.name: alias_body(alias) for alias in adapter.aliases}
    return {
        "name": adapter.name,
        "task": adapter.task,
        "latest_version": adapter.latest,
        "aliases": aliases,
    }


def version_body(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "task": version.manifest.task,
        "backbone": version.manifest.backbone.name,
        "metrics": version.manifest.metrics,
        "note": version.note,
        "tags": dict(version.tags),
        "created_at": version.created_at.isoformat(),
    }


def alias_body(alias: Alias) -> dict[str, Any]:
    return {**asdict(alias), "moved_at": alias.moved_at.isoformat()}
