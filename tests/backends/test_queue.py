"""The queue's contract on PostgreSQL, how its queries are planned there, and its routes."""

from tests.service.jobs.conftest import database, queue, stores  # noqa: F401
from tests.service.jobs.test_indexes import *  # noqa: F403
from tests.service.jobs.test_queue import *  # noqa: F403
from tests.service.jobs.test_routes import *  # noqa: F403
