"""The registry over HTTP: adapters and their versions."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from pydantic import ConfigDict

from adapters.reference import Reference, check_name
from adapters.registry.registry import Registry
from service.access.callers import Who
from service.bodies import Body
from service.protocols.registry import (
    AdapterPage,
    AdapterWithVersions,
    DeletedName,
    DeletedVersion,
    VersionAnswer,
    VersionPage,
    VersionWithManifest,
    adapter_answer,
    version_answer,
    version_page,
)
from service.routes.answers import upload
from service.submissions import Source, Submissions
from service.threads import in_slow_thread

MAX_VERSION = 10**9
Number = Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int | None, Query(ge=1, le=MAX_VERSION)]

_ARCHIVE = {"type": "string", "format": "binary"}
_UPLOAD = upload(
    {
        "name": "of the adapter, if it is not in the URL",
        "note": "beside the version",
        "backbone": "of a PEFT folder",
    },
    **{
        "application/x-tar": _ARCHIVE,
        "application/zip": _ARCHIVE,
        "application/json": Source.model_json_schema(),
    },
)


class NotesBody(Body):
    model_config = ConfigDict(extra="forbid")

    note: str | None = None
    tags: dict[str, str] | None = None


def adapters_router(registry: Registry, submissions: Submissions) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

    @router.get("")
    async def list_adapters(who: Who, limit: Limit = 100, after: str = "") -> AdapterPage:
        """List adapters by name, those behind ``after``."""
        found = await asyncio.to_thread(
            registry.list_adapters, who.namespace, after=after, limit=limit + 1
        )
        return {
            "adapters": [adapter_answer(adapter) for adapter in found[:limit]],
            "has_more": len(found) > limit,
        }

    @router.post("", status_code=201, openapi_extra=_UPLOAD)
    async def create_version(
        request: Request,
        who: Who,
        name: str | None = None,
        note: str | None = None,
        backbone: str | None = None,
    ) -> VersionAnswer:
        """Store a bundle or a stock PEFT folder as the next version of ``name``.

        It comes in the body, as a tar or zip file or a form with one, or the server gets it: ``{"name", "url"}`` or
        ``{"name", "job"}`` as JSON, that of a job that has succeeded.
        """
        in_url = {"name": name, "note": note, "backbone": backbone}
        given = {key: value for key, value in in_url.items() if value is not None}
        if name is not None:
            check_name(name, what="adapter name")
        async with submissions.receive(request, given, who) as (target, folder):
            version = await in_slow_thread(
                registry.create_version,
                target.name,
                folder,
                note=target.note,
                tags=target.tags,
                backbone=target.backbone,
                namespace=who.namespace,
            )
        return version_answer(version)

    @router.get("/{name}")
    async def get_adapter(name: str, who: Who) -> AdapterWithVersions:
        adapter = await asyncio.to_thread(registry.get_adapter, name, who.namespace)
        return {**adapter_answer(adapter), **await list_versions(name, who)}

    @router.get("/{name}/versions")
    async def list_versions(
        name: str, who: Who, limit: Limit = 100, before: Before = None
    ) -> VersionPage:
        """List the newest versions, or the newest ``before`` a number; oldest of them first."""
        found = await asyncio.to_thread(
            registry.list_versions, name, who.namespace, before=before, limit=limit + 1
        )
        return version_page(found[-limit:], has_more=len(found) > limit)

    @router.get("/{name}/versions/{number}")
    async def get_version(name: str, number: Number, who: Who) -> VersionWithManifest:
        """Give a version with its whole manifest: options, head, hashes of its files, and where it comes from."""
        reference = Reference(name, version=number, namespace=who.namespace)
        version = await asyncio.to_thread(registry.resolve, reference)
        return {**version_answer(version), "manifest": version.manifest}

    @router.patch("/{name}/versions/{number}")
    async def annotate(name: str, number: Number, body: NotesBody, who: Who) -> VersionAnswer:
        """Replace a version's note or tags; what is left out stays."""
        return version_answer(
            await asyncio.to_thread(
                registry.annotate,
                name,
                number,
                note=body.note,
                tags=body.tags,
                namespace=who.namespace,
            )
        )

    @router.delete("/{name}/versions/{number}")
    async def delete_version(
        name: str, number: Number, who: Who, force: bool = False
    ) -> DeletedVersion:
        """Delete a version; ``force`` takes away the aliases that point at it. Requests in flight finish."""
        await asyncio.to_thread(
            registry.delete_version, name, number, force=force, namespace=who.namespace
        )
        return {"name": name, "version": number, "deleted": True}

    @router.delete("/{name}")
    async def delete_adapter(name: str, who: Who, force: bool = False) -> DeletedName:
        """Delete all versions of an adapter; ``force`` takes away its aliases."""
        await asyncio.to_thread(registry.delete_adapter, name, force=force, namespace=who.namespace)
        return {"name": name, "deleted": True}

    return router
