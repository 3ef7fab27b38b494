"""The registry's contract, every test of it, on PostgreSQL and S3."""

from adapters.registry.database import Database
from service.access.keys import Keys
from tests.adapters.registry.conftest import bundles, registry, stores  # noqa: F401
from tests.adapters.registry.test_collecting import *  # noqa: F403
from tests.adapters.registry.test_contention import *  # noqa: F403
from tests.adapters.registry.test_history import *  # noqa: F403
from tests.adapters.registry.test_registry import *  # noqa: F403


def test_a_database_without_an_encoding_is_spoken_to_in_utf_8(postgres):
    database = Database(postgres.new_database("SQL_ASCII"))
    key, secret = Keys(database).create("first", ["admin"])
    assert Keys(database).find(secret) == key
    database.close()
