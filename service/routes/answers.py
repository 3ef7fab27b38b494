"""What the OpenAPI document says beside the routes' own types: how errors look, and what uploads are sent as."""

from __future__ import annotations

from typing import Any

from service.errors import ErrorAnswer

# `default` keeps FastAPI from adding its own 422, which `service.errors` never sends.
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorAnswer, "description": "It failed; the code says why."}
}


def upload(fields: dict[str, str], *required: str, **others: Any) -> dict[str, Any]:
    """Return the OpenAPI part about a body that a route reads by itself: a form with a file and such text fields.

    Args:
        others: schemas of other content types that it may come as.
    """
    texts = {name: {"type": "string", "description": told} for name, told in fields.items()}
    form = {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, **texts},
        "required": ["file", *required],
    }
    content = {"multipart/form-data": {"schema": form}}
    content |= {kind: {"schema": schema} for kind, schema in others.items()}
    return {"requestBody": {"required": True, "content": content}}
