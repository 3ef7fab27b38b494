"""What every request must pass before a route sees it: a bound on its size, and errors in the one JSON form."""

from __future__ import annotations

import logging
from typing import Any

from fastapi.responses import JSONResponse

from adapters.errors import HeadstockError, TooLarge
from service.errors import error_response, internal_error

logger = logging.getLogger(__name__)
UPLOAD_PATH = "/v1/adapters"  # has its own bound, counted as the body is written to disk


class Gatekeeper:
    """ASGI middleware, outermost of ours. A route's unexpected error is answered here, inside the server's own
    error handling, which would close the connection under the client's next request.

    Args:
        max_body_bytes: bound of a body, uploads excepted.
    """

    def __init__(self, app: Any, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = is_too_large = False
        size = 0

        async def counted() -> Any:
            nonlocal size, is_too_large
            message = await receive()
            size += len(message.get("body", b""))
            is_too_large = scope["path"] != UPLOAD_PATH and size > self._max_body_bytes
            if is_too_large:
                raise _too_large(self._max_body_bytes)
            return message

        async def watched(message: Any) -> None:
            nonlocal has_begun
            if not is_too_large:  # FastAPI words it its own way, as a body that can't be parsed
                has_begun = True
                await send(message)

        try:
            await self._app(scope, counted, watched)
            if is_too_large:
                raise _too_large(self._max_body_bytes)
        except Exception as error:
            if has_begun:
                raise
            await _response_to(error)(scope, receive, send)


def _response_to(error: Exception) -> JSONResponse:
    if isinstance(error, HeadstockError):
        return error_response(error)
    logger.exception("A request failed")
    return internal_error(error)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than '{limit}' bytes. Send fewer inputs in one call, or raise "
        "HEADSTOCK_MAX_BODY_BYTES on the server."
    )
