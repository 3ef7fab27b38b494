"""Opens the registry that the settings name; apart from the server, so that commands need no web framework."""

from __future__ import annotations

from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from service.settings import Settings, prepare_home


def open_registry(settings: Settings) -> Registry:
    """Return the registry, its database migrated to the newest form.

    Raises:
        EnvironmentProblem: home can't be written, or the database can't be opened.
    """
    prepare_home(settings.home)
    blobs = BlobStore(settings.resolved_blob_url(), settings.bundle_cache())
    return Registry(Database(settings.resolved_database_url()), blobs)
