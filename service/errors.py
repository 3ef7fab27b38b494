"""How errors look over HTTP: a status per code, and one JSON form on the native routes."""

from __future__ import annotations

import json
import sys
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from adapters.errors import HeadstockError, InvalidRequest, StorageFull
from adapters.storage import is_full
from adapters.validation import cut, first_problem, printable, shown

STATUS = {
    "invalid_request": 400,
    "text_too_long": 400,
    "invalid_data": 400,
    "invalid_bundle": 400,
    "unsupported_backbone": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "backbone_mismatch": 409,
    "too_large": 413,
    "overloaded": 429,
    "prediction_failed": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
    "storage_full": 507,
}

RETRIED = ("overloaded", "unavailable")  # nothing was done: the same request may be sent again
_MOST_MESSAGE, _MOST_PARAM = 4000, 200  # characters
_REST_SHOWN = 20  # of a body, from where it is no JSON


class ErrorDetail(BaseModel):
    """What went wrong: a stable code, a sentence, and the field that it lies in, if it lies in one."""

    code: str
    message: str
    param: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 2xx, and what stands for a row that failed."""

    error: ErrorDetail


def error_body(error: HeadstockError) -> dict[str, Any]:
    """Return ``{"code", "message", "param"}``, bounded: a call may have one for each of its rows."""
    param = None if error.param is None else printable(cut(error.param, _MOST_PARAM))
    return {
        "code": error.code,
        "message": printable(cut(error.message, _MOST_MESSAGE)),
        "param": param,
    }


def status_of(error: HeadstockError) -> int:
    return STATUS.get(error.code, 500)


def error_response(error: HeadstockError, **more: Any) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.code in RETRIED else None
    if error.code == "unauthorized":
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse({"error": error_body(error), **more}, status_of(error), headers)


def internal_error(error: Exception) -> JSONResponse:
    """Return the answer to a fault of our own; what it was stands in the log."""
    message = f"The server failed: {type(error).__name__}. Its log tells more."
    return JSONResponse({"error": {"code": "internal", "message": message, "param": None}}, 500)


def add_error_handlers(app: FastAPI) -> None:
    """Give every error that leaves a route the one JSON form."""

    @app.exception_handler(HeadstockError)
    async def _ours(_: Request, error: HeadstockError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(OSError)
    async def _system(_: Request, error: OSError) -> JSONResponse:
        if not is_full(error):
            raise error
        return error_response(
            StorageFull(
                "The server's disk has no room left. Make some, and send the request again."
            )
        )

    @app.exception_handler(RequestValidationError)
    async def _body(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_body_problem(request, error) or _field_problem(error))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ValueError | RecursionError):  # from reading the body
            return error_response(unreadable(error.__cause__))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        body = {
            "code": code,
            "message": f"{error.detail}. See /docs for the routes.",
            "param": None,
        }
        return JSONResponse({"error": body}, error.status_code, error.headers)


def unreadable(error: Exception) -> InvalidRequest:
    """Return what to tell about a body that ``json.loads`` raised a ValueError or RecursionError for."""
    if isinstance(error, json.JSONDecodeError):
        begin, rest = error.doc[: error.pos], error.doc[error.pos :]
        at = len(begin.encode("utf-8", "surrogatepass"))
        where = f"before {shown(rest[:_REST_SHOWN])}" if rest else "its end"
        return InvalidRequest(f"The body is not JSON at byte {at}, {where}: {error.msg}.")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(
            f"The body is not {error.encoding} at byte {error.start}: {error.reason}. Send UTF-8."
        )
    if isinstance(error, RecursionError):
        return InvalidRequest(
            "The body's lists and objects are nested too deeply. Send it flatter."
        )
    most = sys.get_int_max_str_digits()
    return InvalidRequest(
        f"The body has a number of more than '{most}' digits. Send a shorter one."
    )


def _body_problem(request: Request, error: RequestValidationError) -> InvalidRequest | None:
    """Return what is wrong with a body as a whole; None if it is a field."""
    if isinstance(error.__cause__, json.JSONDecodeError):
        return unreadable(error.__cause__)
    problem = error.errors()[0]
    if tuple(problem["loc"]) != ("body",):
        return None
    if problem["type"] == "missing":
        return InvalidRequest("The body is empty. Send a JSON object; /docs shows its fields.")
    if isinstance(error.body, bytes):  # FastAPI parses only what says that it is JSON
        kind = request.headers.get("content-type", "")
        return InvalidRequest(
            f"Content-Type is {shown(kind)}; send 'application/json'.", param="content-type"
        )
    if problem["type"] == "model_attributes_type":
        return InvalidRequest(
            f"The body is {shown(error.body)}; send a JSON object. /docs shows its fields."
        )
    return None


def _field_problem(error: RequestValidationError) -> InvalidRequest:
    problem = error.errors()[0]
    details: Any = {
        "type": problem["type"],
        # FastAPI puts where the value came from first: body, query, path.
        "loc": problem["loc"][1:],
        "input": problem.get("input"),
        "ctx": problem.get("ctx", {}),
    }
    message, path = first_problem(ValidationError.from_exception_data("request", [details]))
    return InvalidRequest(f"In the request, {message}", param=path or None)
