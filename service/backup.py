"""All state in one file, and back: the database's rows and the store's objects, while servers go on.

The rows are read first, in one snapshot; what they refer to is in the store by then, for it is stored before it is
recorded. Rows are written as JSON, so that a backup of SQLite may be restored to PostgreSQL, and the other way.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.orm import Session

from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.registry.database import Database
from adapters.registry.tables import Base, Moment, VersionTable, now
from service.jobs.objects import ObjectStore
from service.settings import make_folder

ABOUT_NAME = "backup.json"
FORMAT = 1
_ROWS, _STORE = "rows/", "store/"
_MANY = 500  # rows that are inserted at once


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds. ``revision`` is the database's form."""

    revision: str
    created_at: str
    rows: Mapping[str, int]
    num_objects: int = 0
    format: int = FORMAT


def write_backup(database: Database, objects: ObjectStore, path: Path) -> Backup:
    """Write all state to a tar file; whole, or not at all.

    Raises:
        NotFound: the store lacks a bundle that the database has; there is no backup then.
        Conflict: the file exists.
        EnvironmentProblem: its folder can't be written.
    """
    if path.exists():
        raise Conflict(f"'{path}' exists. Choose another name, or move it away.")
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as name, tarfile.open(part, "w") as tar:
            scratch = Path(name)
            with database.snapshot() as session:
                about = _write_rows(session, tar, scratch)
                digests = set(
                    session.scalars(
                        select(VersionTable.digest).where(VersionTable.deleted_at.is_(None))
                    )
                )
            num_objects = _write_objects(objects, tar, scratch, digests)
            about = Backup(about.revision, about.created_at, about.rows, num_objects)
            _add_bytes(tar, ABOUT_NAME, json.dumps(asdict(about), indent=2).encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return about


def restore_backup(database: Database, objects: ObjectStore, path: Path) -> Backup:
    """Fill an empty database, and the store, from a backup; the rows come last and all at once.

    Raises:
        InvalidRequest: the file is no backup, or one of another form of the database.
        Conflict: the database is not empty.
    """
    try:
        with tarfile.open(path, "r") as tar, tempfile.TemporaryDirectory() as name:
            about, members = _read_about(tar), _members(tar)
            _check_fits(database, about)
            for key, member in members[_STORE].items():
                objects.put(_extract(tar, member, Path(name) / "object"), key)
            with database.write() as session:
                _check_empty(session)  # once more: nobody else writes now
                for table in Base.metadata.sorted_tables:
                    rows = members[_ROWS].get(f"{table.name}.jsonl")
                    if rows is not None:
                        _insert(session, table, _extract(tar, rows, Path(name) / "rows"))
    except (tarfile.TarError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"'{path}' can't be read as a backup: {error}.", param="file"
        ) from error
    return about


def _write_rows(session: Session, tar: tarfile.TarFile, scratch: Path) -> Backup:
    counts = {}
    for table in Base.metadata.sorted_tables:
        target = scratch / "rows"
        with target.open("w") as file:
            counts[table.name] = 0
            for row in session.execute(select(table).execution_options(yield_per=_MANY)).mappings():
                file.write(json.dumps(dict(row), default=_as_json) + "\n")
                counts[table.name] += 1
        tar.add(target, f"{_ROWS}{table.name}.jsonl")
    return Backup(_revision(session), now().isoformat(), counts)


def _write_objects(
    objects: ObjectStore, tar: tarfile.TarFile, scratch: Path, digests: set[str]
) -> int:
    count = 0
    for key in objects.list_keys():
        # What was removed meanwhile, such as the checkpoint of a job that has just ended, is not missed.
        if objects.get(key, scratch / "object"):
            tar.add(scratch / "object", _STORE + key)
            count += 1
            if PurePosixPath(key).name == "manifest.json":
                digests.discard(PurePosixPath(key).parent.name)
    if digests:
        raise NotFound(
            f"The store lacks the bundle '{min(digests)[:12]}…' of a version, and '{len(digests) - 1}' others. Delete "
            "these versions, or put their bundles back."
        )
    return count


def _read_about(tar: tarfile.TarFile) -> Backup:
    try:
        file = tar.extractfile(ABOUT_NAME)
        assert file is not None
        about = Backup(**json.load(file))
    except (KeyError, AssertionError, TypeError) as error:
        raise InvalidRequest(
            f"The file holds no {ABOUT_NAME}: it is no backup, or was not written to its end.",
            param="file",
        ) from error
    if about.format != FORMAT:
        raise InvalidRequest(
            f"The backup has form '{about.format}', and this version of Headstock reads '{FORMAT}'.",
            param="file",
        )
    return about


def _members(tar: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return members by where they go, and their keys there."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {_ROWS: {}, _STORE: {}}
    for member in tar:
        place, _, key = member.name.partition("/")
        if member.name == ABOUT_NAME:
            continue
        is_plain = member.isfile() and key and not {"..", "."} & set(key.split("/"))
        if f"{place}/" not in found or not is_plain or key.startswith("/"):
            raise InvalidRequest(
                f"The backup holds '{member.name}', which is none of ours.", param="file"
            )
        found[f"{place}/"][key] = member
    return found


def _check_fits(database: Database, about: Backup) -> None:
    with database.read() as session:
        revision = _revision(session)
        if about.revision != revision:
            raise InvalidRequest(
                f"The backup's database has form '{about.revision}', and this version of Headstock has '{revision}'. "
                "Restore it with the version that made it, then upgrade.",
                param="file",
            )
        _check_empty(session)


def _check_empty(session: Session) -> None:
    for table in Base.metadata.sorted_tables:
        count = session.scalar(select(func.count()).select_from(table)) or 0
        if count and table.name != "generations":  # a counter, made with the database
            raise Conflict(
                f"The database is not empty: it has '{count}' rows in '{table.name}'. Restore to a new one."
            )


def _insert(session: Session, table: Table, path: Path) -> None:
    session.execute(table.delete())
    rows = []
    with path.open() as file:
        for line in file:
            rows.append(_from_json(table, json.loads(line)))
            if len(rows) == _MANY:
                session.execute(insert(table), rows)
                rows = []
    if rows:
        session.execute(insert(table), rows)
    _count_on(session, table)


def _count_on(session: Session, table: Table) -> None:
    """Let PostgreSQL number new rows after those that came with their numbers; SQLite does."""
    column = table.autoincrement_column
    if session.get_bind().dialect.name == "postgresql" and column is not None:
        sequence = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
        most = f"(SELECT max({column.name}) FROM {table.name})"
        session.execute(text(f"SELECT setval({sequence}, {most}) WHERE {most} IS NOT NULL"))


def _from_json(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    def value(name: str, given: Any) -> Any:
        if given is not None and isinstance(table.c[name].type, Moment):
            return datetime.fromisoformat(given)
        return given

    return {name: value(name, given) for name, given in row.items()}


def _as_json(value: object) -> str:
    assert isinstance(value, datetime), value
    return value.isoformat()


def _revision(session: Session) -> str:
    return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> Path:
    file = tar.extractfile(member)
    assert file is not None
    with target.open("wb") as out:
        for block in iter(lambda: file.read(2**20), b""):
            out.write(block)
    return target


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
