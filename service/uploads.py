"""The body of an upload, written to a file: an archive as it is, or the one file of a form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.errors import InvalidRequest, TooLarge

_FORM = "multipart/form-data"
_MOST_FIELDS = 8
_FORM_ROOM = 2**16  # bytes of a form beside its file
_READ_BYTES = 2**20


def is_json(headers: Headers) -> bool:
    """Tell whether a body says of itself that it is JSON."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def receive(
    headers: Headers,
    chunks: AsyncIterator[bytes],
    target: Path,
    max_bytes: int,
    *,
    name_field: str | None = None,
) -> dict[str, str]:
    """Write a file that was sent, as it is or in a form, and return the form's other fields, none without a form.

    Args:
        name_field: what the file's own name is to be called among them; None leaves it out.

    Raises:
        InvalidRequest: it is a form, but not one with a single file.
        TooLarge: the body goes beyond ``max_bytes``; what was written is the caller's to remove.
    """
    if headers.get("content-type", "").lower().startswith(_FORM):
        return await _receive_form(headers, chunks, target, max_bytes, name_field)
    with target.open("wb") as file:
        async for chunk in _bounded(chunks, max_bytes):
            file.write(chunk)
    return {}


async def _receive_form(
    headers: Headers,
    chunks: AsyncIterator[bytes],
    target: Path,
    max_bytes: int,
    name_field: str | None,
) -> dict[str, str]:
    bounded = _bounded(chunks, max_bytes + _FORM_ROOM)
    try:
        parser = MultiPartParser(headers, bounded, max_files=1, max_fields=_MOST_FIELDS)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        told = error.message if isinstance(error, MultiPartException) else "no boundary is given"
        raise InvalidRequest(
            f"The form can't be read: {told} Send one with the field 'file'.", param="file"
        ) from error
    fields: dict[str, str] = {}
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise InvalidRequest("The form has no file. Send one as 'file'.", param="file")
        with target.open("wb") as file:
            while chunk := await files[0].read(_READ_BYTES):
                file.write(chunk)
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        if name_field is not None:
            fields[name_field] = files[0].filename or ""
    finally:
        await form.close()
    return fields


async def _bounded(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(
                f"The body is larger than '{max_bytes}' bytes, the most that is taken. Send less, or raise "
                "HEADSTOCK_MAX_BUNDLE_BYTES (bundles) or HEADSTOCK_MAX_FILE_BYTES (files) on the server."
            )
        yield chunk
