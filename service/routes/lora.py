"""vLLM's names for hot loading, mapped onto the registry: what it loads is a version, what it unloads is deleted."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from adapters.errors import Conflict, NotFound
from adapters.reference import check_name
from adapters.registry.registry import Registry
from service.access.callers import Caller, Who
from service.bodies import Body
from service.settings import Settings
from service.sources import fetch_source
from service.threads import in_slow_thread


class LoadBody(Body):
    """What vLLM's ``/v1/load_lora_adapter`` takes; other fields that its builds carry are ignored."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadBody(Body):
    lora_name: str


def lora_router(registry: Registry, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["vllm"])

    @router.post("/load_lora_adapter")
    async def load_lora_adapter(body: LoadBody, who: Who) -> PlainTextResponse:
        """Register the folder at ``lora_path``, under a trusted URL; a name that is taken needs ``load_inplace``."""
        check_name(body.lora_name, what="adapter name")
        if not body.load_inplace and await asyncio.to_thread(_is_taken, body.lora_name, who):
            raise Conflict(
                f"Adapter '{body.lora_name}' is already loaded. Send 'load_inplace': true for a new version of it.",
                param="lora_name",
            )
        await in_slow_thread(_register, body, who)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadBody, who: Who) -> PlainTextResponse:
        """Delete an adapter with its aliases; loaded again, the same weights get their old number."""
        await asyncio.to_thread(
            registry.delete_adapter, body.lora_name, force=True, namespace=who.namespace
        )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _is_taken(name: str, who: Caller) -> bool:
        try:
            registry.get_adapter(name, who.namespace)
        except NotFound:
            return False
        return True

    def _register(body: LoadBody, who: Caller) -> Any:
        with tempfile.TemporaryDirectory(prefix="headstock-load-") as scratch:
            folder = Path(scratch)
            fetch_source(body.lora_path, settings.trusted_urls(), folder, settings.max_bundle_bytes)
            return registry.create_version(body.lora_name, folder, namespace=who.namespace)

    return router
