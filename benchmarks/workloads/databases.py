"""The databases that are measured: SQLite in a scratch folder and, if an empty one is given, PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, MetaData, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from adapters.errors import EnvironmentProblem, InvalidRequest

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
_DURABILITY = ("fsync", "synchronous_commit")
_MOST_TOLD = 3  # tables in an error


@contextmanager
def open_databases(folder: Path, url: str | None) -> Iterator[dict[str, str]]:
    """Give the URLs of empty databases by system; the one at ``url`` is emptied again at the end.

    Raises:
        InvalidRequest: the URL is not one of PostgreSQL, or its database is not empty.
        EnvironmentProblem: the database can't be reached.
    """
    urls = {SQLITE: f"sqlite:///{folder / 'registry.db'}"}
    if url is None:
        yield urls
        return
    engine = _connect(url)
    try:
        _check_empty(engine)
        try:
            yield urls | {POSTGRESQL: url}
        finally:
            _empty(engine)
    finally:
        engine.dispose()


def describe_databases(urls: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return their versions, and what a reader must know of their settings."""
    versions = {SQLITE: sqlite3.sqlite_version}
    if POSTGRESQL not in urls:
        return versions, ["PostgreSQL is left out: no --database-url names an empty database."]
    engine = _connect(urls[POSTGRESQL])
    with engine.connect() as connection:
        names = ("server_version", *_DURABILITY)
        version, *durable = (str(connection.scalar(text(f"SHOW {name}"))) for name in names)
    engine.dispose()
    told = ", ".join(f"{name} {value}" for name, value in zip(_DURABILITY, durable, strict=True))
    return versions | {POSTGRESQL: version}, [f"PostgreSQL ran with {told}."]


def _connect(url: str) -> Engine:
    try:
        return create_engine(_parse(url))
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"PostgreSQL needs the package '{error.name}'. Install 'headstock[cluster]', or leave --database-url out."
        ) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(f"'{url}' is no database URL.", param="database_url") from error
    if parsed.get_backend_name() != "postgresql":
        raise InvalidRequest(
            f"--database-url names a database of type '{parsed.get_backend_name()}'. Give an empty one of "
            "PostgreSQL, such as postgresql://user@host/bench; SQLite is measured anyway.",
            param="database_url",
        )
    return parsed.set(drivername="postgresql+psycopg")


def _check_empty(engine: Engine) -> None:
    try:
        tables = inspect(engine).get_table_names()
    except OperationalError as error:
        told = " ".join(str(error.orig).split())
        raise EnvironmentProblem(
            f"Can't open the database '{engine.url.render_as_string()}': {told} Start it, or leave "
            "--database-url out."
        ) from error
    if tables:
        told = ", ".join(f"'{name}'" for name in sorted(tables)[:_MOST_TOLD])
        raise InvalidRequest(
            f"The database '{engine.url.render_as_string()}' is not empty: it has {told}. The benchmark fills and "
            "empties what it is given; make a database for it (createdb bench).",
            param="database_url",
        )


def _empty(engine: Engine) -> None:
    """Drop all tables: there was none before."""
    tables = MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)
