"""Files of examples that were sent: bytes in the store, one row each, what the data gate said beside it."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.reference import DEFAULT_NAMESPACE
from adapters.registry.database import Database
from adapters.registry.tables import now
from adapters.validation import printable, shown
from service.jobs.objects import ObjectStore
from service.jobs.tables import FileTable, JobTable

SUFFIXES = (".jsonl", ".csv", ".parquet")  # what a run reads, by its name's end
_MOST_NAME = 200  # bytes in UTF-8: file systems take 255


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    namespace: str
    filename: str
    purpose: str
    num_bytes: int
    report: dict[str, Any] | None
    created_at: datetime


class Files:
    """Files over the registry's database and an object store."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self._objects = objects

    def create(
        self,
        source: Path,
        filename: str,
        purpose: str,
        report: dict[str, Any] | None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> StoredFile:
        """Store a file's bytes, then record it: a row never points at missing bytes."""
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        row = FileTable(
            id=f"file-{uuid.uuid4().hex}",
            namespace=namespace,
            filename=plain_name(filename),
            purpose=purpose,
            num_bytes=source.stat().st_size,
            sha256=digest,
            report=report,
            created_at=now(),
        )
        self._objects.put(source, _key(row))
        with self._database.write() as session:
            session.add(row)
            return _file_of(row)

    def get(self, file: str, namespace: str = DEFAULT_NAMESPACE) -> StoredFile:
        """Return a file's record.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as session:
            return _file_of(_find(session, file, namespace))

    def list_files(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        purpose: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> list[StoredFile]:
        """Return files, newest first, those sent before the file ``after``."""
        query = select(FileTable).where(FileTable.namespace == namespace)
        if purpose is not None:
            query = query.where(FileTable.purpose == purpose)
        with self._database.read() as session:
            if after is not None:
                last = _find(session, after, namespace)
                behind = tuple_(FileTable.created_at, FileTable.id) < (last.created_at, last.id)
                query = query.where(behind)
            query = query.order_by(FileTable.created_at.desc(), FileTable.id.desc()).limit(limit)
            return [_file_of(row) for row in session.scalars(query)]

    def delete(self, file: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Remove a file.

        Raises:
            NotFound: there is none.
            Conflict: a job that has not ended needs it.
        """
        with self._database.write() as session:
            row = _find(session, file, namespace)
            active = select(JobTable).where(
                JobTable.namespace == namespace, JobTable.finished_at.is_(None)
            )
            for job in session.scalars(active):
                if file in _files_of(job.order):
                    raise Conflict(
                        f"File '{file}' is needed by job '{job.id}', which has not ended. Cancel it first.",
                        param="file_id",
                    )
            session.delete(row)
        self._objects.remove(_key(row))

    def sent_before(self, moment: datetime) -> list[tuple[str, str]]:
        """Return ids and namespaces of the files that were sent before a moment."""
        with self._database.read() as session:
            query = select(FileTable.id, FileTable.namespace).where(FileTable.created_at < moment)
            return [(row.id, row.namespace) for row in session.execute(query)]

    def url(self, file: str, namespace: str = DEFAULT_NAMESPACE) -> str:
        """Return where a file's bytes are; the name ends as the file's does.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as session:
            return self._objects.url(_key(_find(session, file, namespace)))

    def fetch(self, file: str, target: Path, namespace: str = DEFAULT_NAMESPACE) -> Path:
        """Copy a file's bytes into a folder, and return where they are.

        Raises:
            NotFound: there is none, or its bytes are lost.
        """
        with self._database.read() as session:
            key = _key(_find(session, file, namespace))
        path = target / PurePosixPath(key).name
        if not self._objects.get(key, path):
            raise NotFound(f"The bytes of file '{file}' are lost. Send it again.", param="file_id")
        return path


def plain_name(filename: str) -> str:
    """Return the last part of a file's name, which must end as a file of examples does.

    Raises:
        InvalidRequest: it does not.
    """
    name = printable(filename.replace("\\", "/").rpartition("/")[2])
    is_fit = "\0" not in name and len(name.encode()) <= _MOST_NAME
    if not name.lower().endswith(SUFFIXES) or not is_fit:
        raise InvalidRequest(
            f"{shown(name)} is no file of examples: its name must end in {', '.join(SUFFIXES)}, have at most "
            f"{_MOST_NAME} bytes, and no NUL.",
            param="file",
        )
    return name


def _files_of(order: dict[str, Any]) -> set[str | None]:
    task = order.get("task") or {}
    return {order.get("training_file"), order.get("validation_file"), task.get("test_file")}


def _key(row: FileTable) -> str:
    suffix = next(end for end in SUFFIXES if row.filename.lower().endswith(end))
    return f"files/{row.id}{suffix}"


def _find(session: Session, file: str, namespace: str) -> FileTable:
    row = session.get(FileTable, file)
    if row is None or row.namespace != namespace:
        raise NotFound(f"No file '{file}'. GET /v1/files lists them.", param="file_id")
    return row


def _file_of(row: FileTable) -> StoredFile:
    return StoredFile(
        row.id, row.namespace, row.filename, row.purpose, row.num_bytes, row.report, row.created_at
    )
