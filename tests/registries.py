"""Registries for tests, on SQLite and a folder or on whatever a test's ``new_stores`` gives."""

from dataclasses import dataclass
from pathlib import Path

from adapters.reference import parse_reference
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry

NUM_BUNDLES = 4  # that the registry's tests have, named by their numbers


@dataclass(frozen=True)
class Stores:
    """An empty database and an empty blob store, and where bundles of a remote one are cached."""

    database_url: str
    blob_url: str
    cache: Path


def stores_in(folder, blob_url=None):
    folder.mkdir(parents=True, exist_ok=True)
    database_url = f"sqlite:///{folder / 'registry.db'}"
    return Stores(database_url, blob_url or str(folder / "blobs"), folder / "cache")


def open_registry(stores, spec):
    registry = Registry(Database(stores.database_url), BlobStore(stores.blob_url, stores.cache))
    registry.add_backbone(spec)
    return registry


def resolve(registry, reference):
    return registry.resolve(parse_reference(reference)).number
