"""A registry's tables with very many versions, inserted in bulk, as registering them would make them, without bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from adapters.bundle import Manifest
from adapters.reference import DEFAULT_ALIAS, DEFAULT_NAMESPACE
from adapters.registry.database import Database
from adapters.registry.tables import AdapterTable, AliasTable, Base, VersionTable, now

LONG = "nightly"  # the adapter that has as many versions as all others together
NUM_EACH = 10  # versions of each of the others
_MANY = 2_000  # rows that are inserted at once


def name_of(index: int) -> str:
    """Return the name of one of the others, which come before ``LONG``."""
    return f"intents-{index:06d}"


def fill_versions(database: Database, manifest: Manifest, num_versions: int) -> None:
    """Fill an empty registry: so many versions over adapters of ten, and as many again of one adapter."""
    counts = {name_of(i): NUM_EACH for i in range(num_versions // NUM_EACH)} | {LONG: num_versions}
    with database.write() as session:
        _insert(session, AdapterTable, _adapters(counts, manifest))
        _insert(session, VersionTable, _versions(counts, manifest))
        _insert(session, AliasTable, _aliases(counts))
        if database.is_shared:  # PostgreSQL does so by itself within a minute; SQLite never does
            session.execute(text("ANALYZE"))


def _adapters(counts: dict[str, int], manifest: Manifest) -> Iterator[dict[str, Any]]:
    for key, name in enumerate(counts, start=1):
        yield {"id": key, "namespace": DEFAULT_NAMESPACE, "name": name, "task": manifest.task}


def _versions(counts: dict[str, int], manifest: Manifest) -> Iterator[dict[str, Any]]:
    dumped = manifest.model_dump(mode="json")
    for key, count in enumerate(counts.values(), start=1):
        for number in range(1, count + 1):
            digest = hashlib.sha256(f"{key}:{number}".encode()).hexdigest()
            yield {
                "namespace": DEFAULT_NAMESPACE,
                "adapter_id": key,
                "number": number,
                "digest": digest,
                "backbone": manifest.backbone.fingerprint,
                "manifest": {**dumped, "digest": digest},
                "created_at": now(),
                "note": f"Run {number}",
                "tags": {"team": "search", "run": str(number)},
            }


def _aliases(counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    for key, count in enumerate(counts.values(), start=1):
        yield {
            "namespace": DEFAULT_NAMESPACE,
            "adapter_id": key,
            "name": DEFAULT_ALIAS,
            "version": count,
        }


def _insert(session: Session, table: type[Base], rows: Iterable[dict[str, Any]]) -> None:
    rows = iter(rows)
    while some := list(islice(rows, _MANY)):
        session.execute(insert(table), some)
