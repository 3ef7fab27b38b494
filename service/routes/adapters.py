"""The registry over HTTP: adapters and their versions."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import InvalidRequest, TooLarge
from adapters.reference import Reference, check_name
from adapters.registry.notes import check_note
from adapters.registry.records import Adapter, Alias, Version
from adapters.registry.registry import Registry
from adapters.validation import first_problem
from service.access.callers import Who
from service.archives import unpack
from service.settings import Settings
from service.sources import fetch_source
from service.uploads import is_json, receive

MAX_VERSION = 10**9
_MOST_JSON = 2**16

Number = Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]


Limit = Annotated[int, Query(ge=1, le=1000)]


class TargetBody(BaseModel):
    """What a version is to be called: from the URL or, in a form, its fields."""

    model_config = ConfigDict(extra="forbid")

    name: str
    note: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    backbone: str | None = None


class SourceBody(TargetBody):
    """A bundle that the server is to fetch."""

    url: str


Target = TypeVar("Target", bound=TargetBody)


class NotesBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: str | None = None
    tags: dict[str, str] | None = None


def adapters_router(registry: Registry, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
    most = settings.max_bundle_bytes

    @router.get("")
    async def list_adapters(who: Who, limit: Limit = 1000, after: str = "") -> dict[str, Any]:
        """List adapters by name, those behind ``after``."""
        found = await asyncio.to_thread(
            registry.list_adapters, who.namespace, after=after, limit=limit + 1
        )
        return {
            "adapters": [adapter_body(adapter) for adapter in found[:limit]],
            "has_more": len(found) > limit,
        }

    @router.post("", status_code=201)
    async def create_version(
        request: Request,
        who: Who,
        name: str | None = None,
        note: str | None = None,
        backbone: str | None = None,
    ) -> dict[str, Any]:
        """Store a bundle or a stock PEFT folder as the next version of ``name``.

        It comes in the body, as a tar or zip file or a form with one, or is fetched: ``{"name", "url"}`` as JSON.
        """
        given = {"name": name, "note": note, "backbone": backbone}
        given = {key: value for key, value in given.items() if value is not None}
        if name is not None:
            check_name(name, what="adapter name")
        with tempfile.TemporaryDirectory(prefix="headstock-upload-") as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            if is_json(request.headers):
                fields = await _read_json(request)
                source = _target(SourceBody, {**fields, **given})
                await asyncio.to_thread(
                    fetch_source, source.url, settings.trusted_urls(), folder, most
                )
                target: TargetBody = source
            else:
                archive = Path(scratch) / "archive"
                received = await receive(request.headers, request.stream(), archive, most)
                target = _target(TargetBody, {**received, **given})
                await asyncio.to_thread(unpack, archive, folder, most)
            version = await asyncio.to_thread(
                registry.create_version,
                target.name,
                folder,
                note=target.note,
                tags=target.tags,
                backbone=target.backbone,
                namespace=who.namespace,
            )
        return version_body(version)

    @router.get("/{name}")
    async def get_adapter(name: str, who: Who) -> dict[str, Any]:
        adapter = await asyncio.to_thread(registry.get_adapter, name, who.namespace)
        return {**adapter_body(adapter), **await list_versions(name, who)}

    @router.get("/{name}/versions")
    async def list_versions(
        name: str, who: Who, limit: Limit = 100, before: Annotated[int | None, Query(ge=1)] = None
    ) -> dict[str, Any]:
        """List the newest versions, or the newest ``before`` a number; oldest of them first."""
        found = await asyncio.to_thread(
            registry.list_versions, name, who.namespace, before=before, limit=limit + 1
        )
        return {
            "versions": [version_body(each) for each in found[-limit:]],
            "has_more": len(found) > limit,
        }

    @router.get("/{name}/versions/{number}")
    async def get_version(name: str, number: Number, who: Who) -> dict[str, Any]:
        reference = Reference(name, version=number, namespace=who.namespace)
        return version_body(await asyncio.to_thread(registry.resolve, reference))

    @router.patch("/{name}/versions/{number}")
    async def annotate(name: str, number: Number, body: NotesBody, who: Who) -> dict[str, Any]:
        """Replace a version's note or tags; what is left out stays."""
        return version_body(
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
    ) -> dict[str, Any]:
        """Delete a version; ``force`` takes away the aliases that point at it. Requests in flight finish."""
        await asyncio.to_thread(
            registry.delete_version, name, number, force=force, namespace=who.namespace
        )
        return {"name": name, "version": number, "deleted": True}

    @router.delete("/{name}")
    async def delete_adapter(name: str, who: Who, force: bool = False) -> dict[str, Any]:
        """Delete all versions of an adapter; ``force`` takes away its aliases."""
        await asyncio.to_thread(registry.delete_adapter, name, force=force, namespace=who.namespace)
        return {"name": name, "deleted": True}

    return router


async def _read_json(request: Request) -> dict[str, Any]:
    """Return the object in a body, which is read no further than one may be long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON:
            raise TooLarge(f"A JSON body of more than '{_MOST_JSON}' bytes is not taken here.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InvalidRequest('The body must be an object: {"name": …, "url": …}.')
    return fields


def _target(model: type[Target], fields: dict[str, Any]) -> Target:
    try:
        target = model.model_validate(fields)
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
