"""Opens the state that the settings name; apart from the server, so that commands need no web framework."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from service.access.keys import Keys
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue
from service.settings import Settings, prepare_home


@dataclass(frozen=True, slots=True)
class State:
    """All that outlives a process: one database and one blob store, and what is kept in them."""

    registry: Registry
    queue: JobQueue
    files: Files
    objects: ObjectStore
    keys: Keys
    database: Database


def open_state(settings: Settings) -> State:
    """Return the state, its database migrated to the newest form.

    Raises:
        EnvironmentProblem: home can't be written, or the database or the store can't be opened.
    """
    prepare_home(settings.home)
    database = Database(settings.resolved_database_url())
    blobs = BlobStore(
        settings.resolved_blob_url(), settings.bundle_cache(), settings.cache_disk_bytes
    )
    objects = ObjectStore(settings.resolved_blob_url())
    return State(
        Registry(database, blobs),
        JobQueue(database),
        Files(database, objects),
        objects,
        Keys(database),
        database,
    )


def open_registry(settings: Settings) -> Registry:
    """Return the registry of the state."""
    return open_state(settings).registry
