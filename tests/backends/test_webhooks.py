"""Webhooks' contract on PostgreSQL."""

from tests.service.jobs.conftest import database, queue, stores  # noqa: F401
from tests.service.jobs.test_webhooks import *  # noqa: F403
from tests.service.jobs.test_webhooks import ended, receiver, webhooks  # noqa: F401
