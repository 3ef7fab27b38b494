"""The registry's contract, every test of it, on PostgreSQL and S3."""

from tests.adapters.registry.conftest import bundles, registry, stores  # noqa: F401
from tests.adapters.registry.test_collecting import *  # noqa: F403
from tests.adapters.registry.test_contention import *  # noqa: F403
from tests.adapters.registry.test_history import *  # noqa: F403
from tests.adapters.registry.test_registry import *  # noqa: F403
