"""What every request must pass before a route sees it: an open server, a bound on its size, errors in one JSON form."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adapters.errors import HeadstockError, InvalidRequest, Overloaded, TooLarge, Unavailable
from service.errors import error_response, internal_error

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.02
# Marks of lists, objects and keys, in texts too, are at most one in so many of the bytes that a body may have. An empty
# list takes two bytes, and of Python 60 and a fifth of a microsecond, in which nothing else is answered.
_A_MARK, _LEAST_MARKS = 16, 4096
_MOST_KEPT = 2**19  # bytes of a head, which may come with the end of a body in one piece
# Bodies of the most bytes that all requests may hold together; one that is small is let in beside them.
_MOST_BODIES, _SMALL_BODY = 16, 2**16
UPLOAD_PATHS = (
    "/v1/adapters",
    "/v1/files",
)  # have bounds of their own, counted as bodies are written to disk


@dataclass(slots=True)
class Traffic:
    """How many requests are being answered, with how long bodies, and whether more are let in.

    Written on the event loop, read anywhere.
    """

    num_requests: int = 0
    num_body_bytes: int = 0
    is_draining: bool = False

    def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Return whether the last request was answered in time; its answer may still be on its way out."""
        return wait_while(lambda: self.num_requests > 0, timeout_seconds)


def wait_while(is_so: Callable[[], bool], timeout_seconds: float) -> bool:
    """Return whether a condition ended in time."""
    deadline = time.monotonic() + timeout_seconds
    while is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


class BoundedProtocol(HttpToolsProtocol):
    """HTTP without heads that have no end: its parser keeps a line, a header or a trailer until it is whole."""

    _num_kept = 0

    def data_received(self, data: bytes) -> None:
        self._num_kept += len(data)
        super().data_received(data)
        if self._num_kept > _MOST_KEPT and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._num_kept = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_kept = 0
        super().on_message_complete()


class Gatekeeper:
    """ASGI middleware, outermost of ours. A route's unexpected error is answered here, inside the server's own
    error handling, which would close the connection under the client's next request.

    Args:
        max_body_bytes: bound of a body, uploads excepted.
    """

    def __init__(self, app: Any, max_body_bytes: int, traffic: Traffic) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._traffic = traffic

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._traffic.is_draining:
            await error_response(_stopping())(scope, receive, send)
        elif "\0" in scope["path"] or b"%00" in scope["query_string"]:
            await error_response(_has_nul())(scope, receive, send)
        else:
            self._traffic.num_requests += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._traffic.num_requests -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        has_begun = False
        refusal: HeadstockError | None = None
        size = num_marks = 0

        async def counted() -> Any:
            nonlocal size, num_marks, refusal
            message = await receive()
            if scope["path"] in UPLOAD_PATHS:
                return message
            body = message.get("body", b"")
            size += len(body)
            num_marks += sum(body.count(mark) for mark in (b"[", b"{", b":"))
            self._traffic.num_body_bytes += len(body)
            refusal = _excess(size, num_marks, self._max_body_bytes) or self._crowd(size)
            if refusal is not None:
                raise refusal
            return message

        async def watched(message: Any) -> None:
            nonlocal has_begun
            if refusal is None:  # FastAPI words it its own way, as a body that can't be parsed
                has_begun = True
                await send(message)

        try:
            await self._app(scope, counted, watched)
            if refusal is not None:
                raise refusal
        except ClientDisconnect:  # while it sent its body; nobody is left to be told
            return
        except Exception as error:
            if has_begun:
                raise
            await _response_to(error)(scope, receive, send)
        finally:
            self._traffic.num_body_bytes -= size

    def _crowd(self, size: int) -> Overloaded | None:
        """Return what is wrong with a body for the others that are held; with a small one nothing ever is."""
        if (
            size <= _SMALL_BODY
            or self._traffic.num_body_bytes <= _MOST_BODIES * self._max_body_bytes
        ):
            return None
        return Overloaded(
            f"Bodies of '{self._traffic.num_body_bytes}' bytes are being read and answered, as much as this server "
            "takes. Try again after the time in Retry-After, or send less in one call."
        )


def _response_to(error: Exception) -> JSONResponse:
    if isinstance(error, HeadstockError):
        return error_response(error)
    logger.exception("A request failed")
    return internal_error(error)


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping. Send the request to another, or again later.")


def _has_nul() -> InvalidRequest:
    return InvalidRequest(
        "The address holds '%00', U+0000, which no name or id has. Send it without."
    )


def _excess(size: int, num_marks: int, most_bytes: int) -> TooLarge | None:
    """Return what is too much in the part of a body that has come so far."""
    most_marks = max(most_bytes // _A_MARK, _LEAST_MARKS)
    told = ""
    if size > most_bytes:
        told = f"is larger than '{most_bytes}' bytes"
    elif num_marks > most_marks:
        told = f"holds '[', '{{' or ':' more than '{most_marks}' times"
    if not told:
        return None
    return TooLarge(
        f"The body {told}. Send fewer inputs in one call, or raise HEADSTOCK_MAX_BODY_BYTES on the server."
    )
