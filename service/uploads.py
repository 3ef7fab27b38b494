"""The body of an upload, written to a file: an archive as it is, or the one file of a form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.errors import InvalidRequest, TooLarge
from service.threads import in_slow_thread

_FORM = "multipart/form-data"
_MOST_FIELDS = 8
_FORM_ROOM = 2**16  # bytes of a form beside its file
_WRITE_BYTES = 2**20


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
    file = _Landing(target)
    try:
        async for chunk in _bounded(chunks, max_bytes):
            await file.write(chunk)
        await file.flush()
    finally:
        await file.close()
    return {}


class _Landing(UploadFile):
    """A file that is written where it is to lie, in large pieces; Starlette's own is written elsewhere first."""

    def __init__(self, path: Path, filename: str | None = None) -> None:
        super().__init__(path.open("wb"), size=0, filename=filename)
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    async def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._num_bytes += len(data)
        if self._num_bytes >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces, self._num_bytes = [], 0
        await in_slow_thread(self._write_out, data)

    async def seek(self, offset: int) -> None:
        """Take note that the file is whole: what the parser does then is to go to its beginning."""
        await self.flush()

    def _write_out(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()


class _Parser(MultiPartParser):
    """Reads a form whose one file goes to ``target``."""

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None], target: Path) -> None:
        super().__init__(headers, chunks, max_files=1, max_fields=_MOST_FIELDS)
        self._target = target

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None:
            part.file = _Landing(self._target, part.file.filename)
            self._files_to_close_on_error.append(part.file.file)  # type: ignore[arg-type]


async def _receive_form(
    headers: Headers,
    chunks: AsyncIterator[bytes],
    target: Path,
    max_bytes: int,
    name_field: str | None,
) -> dict[str, str]:
    bounded = _bounded(chunks, max_bytes + _FORM_ROOM)
    try:
        form = await _Parser(headers, bounded, target).parse()
    except (MultiPartException, KeyError) as error:
        told = error.message if isinstance(error, MultiPartException) else "no boundary is given"
        raise InvalidRequest(
            f"The form can't be read: {told} Send one with the field 'file'.", param="file"
        ) from error
    await form.close()
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    if not files:
        raise InvalidRequest("The form has no file. Send one as 'file'.", param="file")
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    if name_field is not None:
        fields[name_field] = files[0].filename or ""
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
