"""How versions begin and end: added under the next number, brought back under their old one, buried."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.bundle import Bundle
from adapters.errors import BackboneMismatch, Conflict
from adapters.registry.aliases import remove_alias
from adapters.registry.lookups import any_adapter, latest, live_versions, next_number
from adapters.registry.tables import AdapterTable, AliasTable, VersionTable, now


def get_or_add_adapter(session: Session, namespace: str, name: str, bundle: Bundle) -> AdapterTable:
    task = bundle.manifest.task
    adapter = any_adapter(session, namespace, name)
    if adapter is None:
        adapter = AdapterTable(namespace=namespace, name=name, task=task)
        session.add(adapter)
        session.flush()
    elif not latest(session, adapter):
        adapter.task = task
    elif adapter.task != task:
        raise Conflict(
            f"Adapter '{name}' is for '{adapter.task}'; this bundle is for '{task}'. Give it another name.",
            param="name",
        )
    return adapter


def get_or_add_version(
    session: Session, adapter: AdapterTable, bundle: Bundle, note: str, tags: Mapping[str, str]
) -> VersionTable:
    fingerprint = bundle.manifest.backbone.fingerprint
    other = session.scalar(
        live_versions(adapter).where(VersionTable.backbone != fingerprint).limit(1)
    )
    if other is not None:
        raise BackboneMismatch(
            f"Versions of '{adapter.name}' are for the backbone with fingerprint "
            f"'{other.backbone[:12]}…', this bundle for '{fingerprint[:12]}…'. Give it another name."
        )
    same = session.scalar(
        select(VersionTable).where(
            VersionTable.adapter_id == adapter.id, VersionTable.digest == bundle.digest
        )
    )
    if same is not None:
        if same.deleted_at is not None:
            same.deleted_at, same.note, same.tags = None, note, dict(tags)
        return same
    row = VersionTable(
        namespace=adapter.namespace,
        adapter_id=adapter.id,
        number=next_number(session, adapter),
        digest=bundle.digest,
        backbone=fingerprint,
        manifest=bundle.manifest.model_dump(mode="json"),
        created_at=now(),
        note=note,
        tags=dict(tags),
    )
    session.add(row)
    return row


def bury(session: Session, adapter: AdapterTable, rows: list[VersionTable], *, force: bool) -> None:
    """Set tombstones on versions, and take away the aliases that point at them if need be."""
    numbers = [row.number for row in rows]
    pointing = list(
        session.scalars(
            select(AliasTable).where(
                AliasTable.adapter_id == adapter.id, AliasTable.version.in_(numbers)
            )
        )
    )
    if pointing and not force:
        told = ", ".join(f"'{alias.name}' at version {alias.version}" for alias in pointing)
        raise Conflict(
            f"Aliases of '{adapter.name}' point at what is to be deleted: {told}. Move them first, or force it, "
            "which takes them away.",
            param="force",
        )
    for alias in pointing:
        remove_alias(session, adapter, alias.name, None)
    for row in rows:
        row.deleted_at = now()
