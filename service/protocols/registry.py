"""Adapters, versions and aliases as the registry's routes tell them."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import TypedDict

from adapters.bundle import Manifest
from adapters.registry.promotion import Comparison
from adapters.registry.records import Adapter, Alias, AliasMove, Version


class AliasAnswer(TypedDict):
    """A movable name of a version; ``revision`` is its ETag too, ``moved_at`` ISO 8601."""

    name: str
    version: int
    revision: int
    moved_at: str


class MoveAnswer(TypedDict):
    """A line of an alias's history; ``version`` is null where the alias was taken away."""

    revision: int
    version: int | None
    is_rollback: bool
    moved_at: str


class AliasWithHistory(AliasAnswer):
    history: list[MoveAnswer]


class MovedAlias(AliasAnswer):
    """An alias after ``promote_if``: whether it moved, and what was compared."""

    moved: bool
    comparison: Comparison


class AdapterAnswer(TypedDict):
    name: str
    task: str
    latest_version: int
    aliases: dict[str, AliasAnswer]


class AdapterPage(TypedDict):
    adapters: list[AdapterAnswer]
    has_more: bool


class VersionAnswer(TypedDict):
    """A version; ``digest`` is a SHA-256 in hex, ``created_at`` ISO 8601."""

    name: str
    version: int
    digest: str
    task: str
    backbone: str
    metrics: dict[str, dict[str, float]]
    note: str
    tags: dict[str, str]
    created_at: str


class VersionWithManifest(VersionAnswer):
    manifest: Manifest


class VersionPage(TypedDict):
    versions: list[VersionAnswer]
    has_more: bool


class AdapterWithVersions(AdapterAnswer, VersionPage):
    """An adapter and its newest versions, oldest of them first."""


class Residency(TypedDict):
    """What the engine keeps of a version."""

    name: str
    version: int
    is_pinned: bool
    is_resident: bool


class DeletedName(TypedDict):
    name: str
    deleted: bool


class DeletedVersion(DeletedName):
    version: int


def adapter_answer(adapter: Adapter) -> AdapterAnswer:
    return {
        "name": adapter.name,
        "task": adapter.task,
        "latest_version": adapter.latest,
        "aliases": {alias.name: alias_answer(alias) for alias in adapter.aliases},
    }


def version_answer(version: Version) -> VersionAnswer:
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "task": version.manifest.task,
        "backbone": version.manifest.backbone.name,
        "metrics": version.manifest.metrics,
        "note": version.note,
        "tags": dict(version.tags),
        "created_at": version.created_at.isoformat(),
    }


def version_page(found: Sequence[Version], *, has_more: bool) -> VersionPage:
    return {"versions": [version_answer(each) for each in found], "has_more": has_more}


def alias_answer(alias: Alias) -> AliasAnswer:
    return {
        "name": alias.name,
        "version": alias.version,
        "revision": alias.revision,
        "moved_at": alias.moved_at.isoformat(),
    }


def move_answer(move: AliasMove) -> MoveAnswer:
    return {
        "revision": move.revision,
        "version": move.version,
        "is_rollback": move.is_rollback,
        "moved_at": move.moved_at.isoformat(),
    }
