"""ASGI middleware that asks for a key, and knows which scope each route needs."""

from __future__ import annotations

import time
from typing import Any

from starlette.datastructures import Headers

from adapters.errors import Forbidden, HeadstockError, Unauthorized
from service.access.callers import CALLER_KEY, Caller
from service.access.keys import MOST_SECRET, Key, Keys
from service.errors import error_response
from service.threads import in_quick_thread

_OPEN_PATHS = ("/health", "/docs", "/openapi.json", "/redoc")
_READ = ("GET", "HEAD", "OPTIONS")
_ADAPTERS = ("/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_JOBS = ("/v1/files", "/v1/fine_tuning")
_REMEMBERED_SECONDS = 1.0  # how long a key that was revoked may still be taken
_MOST_REMEMBERED = 10_000


class Guard:
    """Lets a request through if its key is valid and allows what the route does."""

    def __init__(self, app: Any, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        self._seen: dict[str, tuple[Key | None, float]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            key = await self._admit(scope)
        except HeadstockError as error:
            await error_response(error)(scope, receive, send)
            return
        scope[CALLER_KEY] = Caller(key.namespace, is_bound=True, key=key.id, max_jobs=key.max_jobs)
        await self._app(scope, receive, send)

    async def _admit(self, scope: Any) -> Key:
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        key = await self._find(secret.strip()) if kind.lower() == "bearer" else None
        if key is None or not key.is_valid:
            why = "No API key" if not secret else "This API key is not valid, or not any more"
            raise Unauthorized(
                f"{why}. Send 'Authorization: Bearer KEY'; 'headstock keys' makes one."
            )
        needed = scope_needed(scope["method"], scope["path"])
        if not key.allows(needed):
            raise Forbidden(
                f"Key '{key.name}' may do {', '.join(key.scopes)}; this needs '{needed}'. Use another key."
            )
        return key

    async def _find(self, secret: str) -> Key | None:
        # Remembered, one that is none of ours would take as much room as anybody likes.
        if len(secret) > MOST_SECRET:
            return None
        key, seen_at = self._seen.get(secret, (None, -_REMEMBERED_SECONDS))
        if time.monotonic() - seen_at < _REMEMBERED_SECONDS:
            return key
        key = await in_quick_thread(self._keys.find, secret)
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[secret] = (key, time.monotonic())
        return key


def scope_needed(method: str, path: str) -> str:
    """Return what a key must allow for a request. What no rule knows is for administrators."""
    if _is_at(path, _JOBS):
        return "jobs"
    if _is_at(path, _ADAPTERS):
        return "predict" if method in _READ else "adapters:write"
    return "predict" if _is_at(path, ("/v1", "/v2", "/models")) else "admin"


def _is_at(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)
