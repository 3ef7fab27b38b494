"""What is particular to a database: how it is opened, and what is said when it can't be used."""

import sqlite3

import pytest
from sqlalchemy import text

from adapters.errors import EnvironmentProblem, Unavailable
from adapters.registry.database import Database
from adapters.registry.tables import now
from tests.registries import open_registry, stores_in


def test_sqlite_is_in_wal_mode(tmp_path):
    Database(f"sqlite:///{tmp_path / 'registry.db'}")
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:////not/there/registry.db", "HEADSTOCK_HOME"),
        ("nonsense", "'nonsense' is no database URL"),
        ("mysql://host/x", "'mysql'"),
        ("postgresql://127.0.0.1:1/x", "Can't open|headstock.cluster"),
    ],
)
def test_what_cannot_be_opened_is_the_environments_fault(url, told):
    with pytest.raises(EnvironmentProblem, match=told):
        Database(url)


def test_a_password_is_not_told():
    with pytest.raises(EnvironmentProblem) as caught:
        Database("postgresql://user:secret@127.0.0.1:1/x")
    assert "secret" not in caught.value.message


def test_a_database_that_is_locked_is_unavailable(tmp_path):
    path = tmp_path / "registry.db"
    database = Database(f"sqlite:///{path}")
    with database.read() as session:
        session.execute(text("PRAGMA busy_timeout=1"))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"), database.write() as session:
        session.execute(text("SELECT 1"))
    holder.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "registry.db"
    Database(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(EnvironmentProblem, match=r"'9999'.*a newer one has used it"):
        Database(f"sqlite:///{path}")


def test_moments_have_a_zone(tmp_path, decoder_spec, bundles):
    registry = open_registry(stores_in(tmp_path), decoder_spec)
    registry.create_version("a", bundles / "0")
    assert registry.list_versions("a")[0].created_at <= now()
