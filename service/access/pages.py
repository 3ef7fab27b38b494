"""ASGI middleware that lets no web page change anything on a server that asks for no key."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from adapters.errors import Forbidden
from adapters.validation import shown
from service.errors import error_response

_READ = ("GET", "HEAD", "OPTIONS")
_LOCAL = ("127.0.0.1", "localhost", "::1")


class LocalPages:
    """Refuses what browsers send for a page that is not of this machine.

    They let any page on the web send uploads to 127.0.0.1, and say in ``Origin`` which it is; programs send no such
    header. Keys need none of this, for a page does not know them.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None or scope["method"] in _READ or _is_local(origin):
            await self._app(scope, receive, send)
        else:
            await error_response(_from_elsewhere(origin))(scope, receive, send)


def _is_local(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in _LOCAL
    except ValueError:
        return False


def _from_elsewhere(origin: str) -> Forbidden:
    return Forbidden(
        f"A web page of {shown(origin)} sent this, and this server asks for no keys. Set HEADSTOCK_REQUIRE_KEYS=true "
        "and send one, or HEADSTOCK_ALLOW_NO_KEYS=true if something in front looks who is asking."
    )
