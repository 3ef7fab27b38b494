"""The registry over HTTP: adapters, versions, aliases."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import InvalidRequest
from adapters.reference import Reference, check_name
from adapters.registry.registry import Adapter, Alias, Registry, Version
from service.uploads import receive, unpack

MAX_VERSION = 10**9


class AliasBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=MAX_VERSION)


def adapters_router(registry: Registry, max_bundle_bytes: int) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

    @router.get("")
    async def list_adapters() -> dict[str, Any]:
        adapters = await asyncio.to_thread(registry.list_adapters)
        return {"adapters": [adapter_body(adapter) for adapter in adapters]}

    @router.post("", status_code=201)
    async def create_version(name: str, request: Request) -> dict[str, Any]:
        """Store the bundle in the body, a tar stream, as the next version of ``name``."""
        check_name(name, what="adapter name")
        with tempfile.TemporaryDirectory(prefix="headstock-upload-") as scratch:
            archive, folder = Path(scratch) / "bundle.tar", Path(scratch) / "bundle"
            folder.mkdir()
            await receive(request.stream(), archive, max_bundle_bytes)
            await asyncio.to_thread(unpack, archive, folder, max_bundle_bytes)
            version = await asyncio.to_thread(registry.create_version, name, folder)
        return version_body(version)

    @router.get("/{name}")
    async def get_adapter(name: str) -> dict[str, Any]:
        adapter = await asyncio.to_thread(registry.get_adapter, name)
        versions = await asyncio.to_thread(registry.list_versions, name)
        return {**adapter_body(adapter), "versions": [version_body(each) for each in versions]}

    @router.get("/{name}/versions/{number}")
    async def get_version(
        name: str, number: Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]
    ) -> dict[str, Any]:
        reference = Reference(name, version=number)
        return version_body(await asyncio.to_thread(registry.resolve, reference))

    @router.put("/{name}/aliases/{alias}")
    async def set_alias(
        name: str,
        alias: str,
        body: AliasBody,
        if_match: Annotated[str | None, Header()] = None,
    ) -> JSONResponse:
        """Point an alias at a version; with ``If-Match``, only if nobody moved it meanwhile."""
        moved = await asyncio.to_thread(
            registry.set_alias, name, alias, body.version, if_revision=_revision(if_match)
        )
        return JSONResponse(alias_body(moved), headers={"ETag": f'"{moved.revision}"'})

    return router


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
        "created_at": version.created_at.isoformat(),
    }


def alias_body(alias: Alias) -> dict[str, Any]:
    return {**asdict(alias), "moved_at": alias.moved_at.isoformat()}


def _revision(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    text = if_match.strip().strip('"')
    if not text.isdecimal():
        raise InvalidRequest(
            f"If-Match is '{if_match}'; send the ETag that the alias came with, such as \"3\".",
            param="if-match",
        )
    return int(text)
