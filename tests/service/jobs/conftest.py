"""A queue, on SQLite here; the same tests run on PostgreSQL under tests/backends."""

import pytest

from adapters.registry.database import Database
from service.jobs.queue import JobQueue
from tests.registries import stores_in


@pytest.fixture
def new_stores(tmp_path_factory):
    return lambda: stores_in(tmp_path_factory.mktemp("queue"))


@pytest.fixture
def stores(new_stores):
    return new_stores()


@pytest.fixture
def database(stores):
    return Database(stores.database_url)


@pytest.fixture
def queue(database):
    return JobQueue(database)
