"""The queue's contract on PostgreSQL."""

from tests.service.jobs.conftest import database, queue  # noqa: F401
from tests.service.jobs.test_queue import *  # noqa: F403
