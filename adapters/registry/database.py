"""A connection to the registry's database, migrated to the newest form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from adapters.errors import EnvironmentProblem

_MIGRATIONS = Path(__file__).parent.parent / "migrations"


class Database:
    """One engine per process; reads and writes are separate transactions.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:////var/lib/headstock/registry.db``.

    Raises:
        EnvironmentProblem: the database can't be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = create_engine(url)
            if make_url(url).get_backend_name() == "sqlite":
                _prepare_sqlite(self._engine)
            self._migrate()
        except OperationalError as error:
            raise EnvironmentProblem(
                f"Can't open the registry's database '{make_url(url).render_as_string()}': "
                f"{error.orig}. Set HEADSTOCK_HOME or HEADSTOCK_DATABASE_URL to one you can write."
            ) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that is committed at the end, or rolled back if anything is raised."""
        engine = self._engine.execution_options(headstock_write=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        engine = self._engine.execution_options(headstock_write=True)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # we begin by hand, below
        cursor = connection.cursor()  # type: ignore[attr-defined]
        for pragma in ("journal_mode=WAL", "busy_timeout=10000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A write that begins as a read fails at once if another write came between; IMMEDIATE waits.
        writes = connection.get_execution_options().get("headstock_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
