"""Opens the state that the settings name; apart from the server, so that commands need no web framework."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from adapters.errors import EnvironmentProblem, StorageFull, Unavailable
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from service.access.keys import Keys
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue
from service.settings import Settings, prepare_home

logger = logging.getLogger(__name__)
_STORE_SECONDS = 10.0  # for a store to answer before anything else starts without it


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


def check_store(objects: ObjectStore, *, writes: bool, seconds: float = _STORE_SECONDS) -> None:
    """Find out before anything starts whether the store lets us in; one that does not answer may come back.

    Args:
        writes: as of `ObjectStore.check`; a server without workers may do with reading.

    Raises:
        EnvironmentProblem: it refuses us.
    """
    refused: list[EnvironmentProblem] = []

    def look() -> None:
        try:
            objects.check(writes=writes)
        except EnvironmentProblem as problem:
            refused.append(problem)
        except (StorageFull, Unavailable) as error:
            logger.warning("%s", error.message)

    thread = threading.Thread(target=look, name="check-store", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        logger.warning("The store has not answered for %.0f s; it is used when it does.", seconds)
    if refused:
        raise refused[0]


def open_registry(settings: Settings) -> Registry:
    """Return the registry of the state."""
    return open_state(settings).registry
