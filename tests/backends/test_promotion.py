"""The promotion gate's contract on PostgreSQL and S3."""

from tests.adapters.registry.conftest import stores  # noqa: F401
from tests.adapters.registry.test_promotion import *  # noqa: F403
