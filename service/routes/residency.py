"""Which versions the engine keeps at hand: brought in ahead of requests, or pinned."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter

from adapters.backbone import BackboneSpec
from adapters.reference import Reference
from adapters.registry.records import Version
from adapters.registry.registry import Registry
from service.access.callers import Caller, Who
from service.calls import EngineCalls
from service.predictor import check_backbone
from service.protocols.registry import Residency
from service.routes.adapters import Number


def residency_router(registry: Registry, calls: EngineCalls, backbone: BackboneSpec) -> APIRouter:
    router = APIRouter(prefix="/v1/adapters/{name}/versions/{number}", tags=["adapters"])

    def find(name: str, number: int, who: Caller, how: str) -> Version:
        # What is let go may be deleted by now, and holds its place for ever if it is not found.
        if how == "unpin" and (version := registry.recall(name, number, who.namespace)):
            return version
        version = registry.resolve(Reference(name, version=number, namespace=who.namespace))
        check_backbone(version, backbone)
        return version

    async def hold(
        name: str, number: int, who: Caller, how: Literal["warm", "pin", "unpin"]
    ) -> Residency:
        version = await asyncio.to_thread(find, name, number, who, how)
        stats = await calls.hold(version.digest, how)
        return {
            "name": version.name,
            "version": version.number,
            "is_pinned": how == "pin",
            "is_resident": version.digest in stats.resident_adapters,
        }

    @router.post("/warm", status_code=202)
    async def warm(name: str, number: Number, who: Who) -> Residency:
        """Have a version read into memory before the first request for it."""
        return await hold(name, number, who, "warm")

    @router.post("/pin", status_code=202)
    async def pin(name: str, number: Number, who: Who) -> Residency:
        """Keep a version on the device although nobody asks for it, until it is unpinned or the engine restarts."""
        return await hold(name, number, who, "pin")

    @router.delete("/pin")
    async def unpin(name: str, number: Number, who: Who) -> Residency:
        """Let a pinned version go when others need its place."""
        return await hold(name, number, who, "unpin")

    return router
