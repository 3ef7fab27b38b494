"""A connection to the registry's database, migrated to the newest form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as SQLTimeoutError
from sqlalchemy.orm import Session

from adapters.errors import EnvironmentProblem, Unavailable

_LOCK = 0x4845_4144  # an advisory lock of PostgreSQL's: any number that nobody else takes
_MIGRATIONS = Path(__file__).parent.parent / "migrations"


class Database:
    """One engine per process; reads and writes are separate transactions.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:////var/lib/headstock/registry.db`` or ``postgresql://host/headstock``.

    Raises:
        EnvironmentProblem: the database can't be opened.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.is_shared = parsed.get_backend_name() != "sqlite"
        try:
            # A server that was restarted, or a firewall, leaves dead connections in the pool. A cluster made with
            # locale C has no encoding, and its texts would come as bytes.
            told = {"client_encoding": "utf8"} if self.is_shared else {}
            self._engine = create_engine(parsed, pool_pre_ping=self.is_shared, connect_args=told)
            if not self.is_shared:
                _prepare_sqlite(self._engine)
            self._migrate()
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                f"The database '{parsed.render_as_string()}' needs the package '{error.name}'. Install "
                "'headstock[cluster]'."
            ) from error
        except OperationalError as error:
            raise EnvironmentProblem(
                f"Can't open the registry's database '{parsed.render_as_string()}': "
                f"{error.orig}. Set HEADSTOCK_HOME or HEADSTOCK_DATABASE_URL to one you can write."
            ) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session to read with.

        Raises:
            Unavailable: the database does not answer.
        """
        with _told(), Session(self._engine) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Give a session that sees nothing of what others write meanwhile.

        Raises:
            Unavailable: the database does not answer.
        """
        engine = self._engine  # SQLite's transactions are such in WAL mode
        if self.is_shared:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with _told(), Session(engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that is committed at the end, or rolled back if anything is raised.

        Raises:
            Unavailable: the database does not answer, or can't be written.
        """
        engine = self._engine.execution_options(headstock_write=True)
        with _told(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def take_turns(self, session: Session, name: str) -> None:
        """Let one transaction at a time go on from here, of those that name the same; SQLite's writes do anyway."""
        if self.is_shared:
            session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        engine = self._engine.execution_options(headstock_write=True)
        with engine.begin() as connection:
            if (
                self.is_shared
            ):  # one of the servers that start at once migrates; SQLite's IMMEDIATE sees to that
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:  # it knows the form's number no more than we do
                raise EnvironmentProblem(
                    f"The database has a form that this version of Headstock does not know ({error}): a newer one has "
                    "used it. Start that one, or restore a backup from before into an empty database."
                ) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise EnvironmentProblem(
            f"'{url}' is no database URL. Write one such as postgresql://user@host/headstock in "
            "HEADSTOCK_DATABASE_URL."
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise EnvironmentProblem(
            f"Databases of type '{parsed.get_backend_name()}' are not supported; sqlite and postgresql are."
        )
    # SQLAlchemy's own default is the driver before this one.
    return (
        parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed
    )


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the driver raises when the database is gone, full or locked into an error of ours."""
    try:
        yield
    except (OperationalError, InterfaceError, SQLTimeoutError) as error:
        told = getattr(error, "orig", None) or error
        raise Unavailable(
            f"The registry's database could not be used: {str(told).strip()}. Try again, and look at the database "
            "if it stays so."
        ) from error


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
