"""Registries on SQLite and a folder, for tests."""

from adapters.reference import parse_reference
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry

NUM_BUNDLES = 4  # that the registry's tests have, named by their numbers


def open_registry(folder, spec, blobs=None):
    folder.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    registry = Registry(database, BlobStore(blobs or str(folder / "blobs"), folder / "cache"))
    registry.add_backbone(spec)
    return registry


def resolve(registry, reference):
    return registry.resolve(parse_reference(reference)).number
