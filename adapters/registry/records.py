"""What the registry tells: adapters, versions and aliases as they are recorded, apart from the database's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from adapters.bundle import Manifest
from adapters.registry.tables import AdapterTable, AliasMoveTable, AliasTable, VersionTable


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an adapter; ``note`` and ``tags`` may change, all else stays."""

    namespace: str
    name: str
    number: int
    digest: str
    manifest: Manifest
    created_at: datetime
    note: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name of a version; ``revision`` counts its moves and serves as its ETag."""

    name: str
    version: int
    revision: int
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class AliasMove:
    """A line of an alias's history.

    Args:
        version: that it pointed at from then on; None if it was taken away.
    """

    revision: int
    version: int | None
    is_rollback: bool
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter with its newest version number and its aliases."""

    namespace: str
    name: str
    task: str
    latest: int
    aliases: tuple[Alias, ...]


def version_of(row: VersionTable, adapter: AdapterTable) -> Version:
    manifest = Manifest.model_validate(row.manifest)
    return Version(
        adapter.namespace,
        adapter.name,
        row.number,
        row.digest,
        manifest,
        row.created_at,
        row.note,
        dict(row.tags),
    )


def alias_of(row: AliasTable) -> Alias:
    return Alias(row.name, row.version, row.revision, row.moved_at)


def move_of(row: AliasMoveTable) -> AliasMove:
    return AliasMove(row.revision, row.version, row.is_rollback, row.moved_at)
