"""How rows of the registry are found; what is not there is said together with what is. Tombstones are not there."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from adapters.errors import NotFound
from adapters.reference import Reference
from adapters.registry.records import Adapter, Alias, Version, version_of
from adapters.registry.tables import AdapterTable, AliasTable, VersionTable

_MOST_TOLD = 10  # names in an error


def live_versions(adapter: AdapterTable) -> Select[VersionTable]:
    return select(VersionTable).where(
        VersionTable.adapter_id == adapter.id, VersionTable.deleted_at.is_(None)
    )


def live_adapters(namespace: str) -> Select[AdapterTable]:
    """Return a query for the adapters that have a version, by name."""
    has_version = select(VersionTable.id).where(
        VersionTable.adapter_id == AdapterTable.id, VersionTable.deleted_at.is_(None)
    )
    return (
        select(AdapterTable)
        .where(AdapterTable.namespace == namespace, has_version.exists())
        .order_by(AdapterTable.name)
    )


def any_adapter(session: Session, namespace: str, name: str) -> AdapterTable | None:
    """Return an adapter's row, be all its versions deleted or not."""
    return session.scalar(
        select(AdapterTable).where(AdapterTable.namespace == namespace, AdapterTable.name == name)
    )


def find_adapter(session: Session, namespace: str, name: str) -> AdapterTable:
    """Return an adapter's row.

    Raises:
        NotFound: there is none, or all its versions are deleted.
    """
    adapter = session.scalar(live_adapters(namespace).where(AdapterTable.name == name))
    if adapter is None:
        rows = session.scalars(live_adapters(namespace).limit(_MOST_TOLD))
        known = ", ".join(f"'{Reference(row.name, namespace=namespace)}'" for row in rows)
        wanted = Reference(name, namespace=namespace)
        raise NotFound(
            f"No adapter named '{wanted}'. Known: {known or 'none yet'}.", param="adapter"
        )
    return adapter


def find_version(session: Session, adapter: AdapterTable, number: int) -> VersionTable:
    """Return a version's row.

    Raises:
        NotFound: there is none, or it is deleted.
    """
    row = session.scalar(live_versions(adapter).where(VersionTable.number == number))
    if row is None:
        raise NotFound(
            f"'{adapter.name}' has no version '{number}'. Its newest is {latest(session, adapter)}.",
            param="adapter",
        )
    return row


def any_version(session: Session, namespace: str, name: str, number: int) -> Version | None:
    """Return a version, be it deleted or not; None if there never was one."""
    found = session.execute(
        select(VersionTable, AdapterTable)
        .join(AdapterTable, VersionTable.adapter_id == AdapterTable.id)
        .where(AdapterTable.namespace == namespace, AdapterTable.name == name)
        .where(VersionTable.number == number)
    ).first()
    return None if found is None else version_of(*found)


def latest(session: Session, adapter: AdapterTable) -> int:
    """Return the newest version's number; 0 if there is none."""
    numbers = live_versions(adapter).with_only_columns(VersionTable.number)
    return session.scalar(numbers.order_by(VersionTable.number.desc()).limit(1)) or 0


def next_number(session: Session, adapter: AdapterTable) -> int:
    """Return a number that no version has or had."""
    numbers = select(func.max(VersionTable.number)).where(VersionTable.adapter_id == adapter.id)
    return (session.scalar(numbers) or 0) + 1


def any_alias(session: Session, adapter: AdapterTable, alias: str) -> AliasTable | None:
    return session.scalar(
        select(AliasTable).where(AliasTable.adapter_id == adapter.id, AliasTable.name == alias)
    )


def find_alias(session: Session, adapter: AdapterTable, alias: str) -> AliasTable:
    """Return an alias's row.

    Raises:
        NotFound: there is none.
    """
    row = any_alias(session, adapter, alias)
    if row is None:
        names = session.scalars(select(AliasTable.name).where(AliasTable.adapter_id == adapter.id))
        known = ", ".join(f"'{name}'" for name in names) or "none yet"
        raise NotFound(f"'{adapter.name}' has no alias '{alias}'. Known: {known}.", param="adapter")
    return row


def adapters_of(session: Session, rows: Sequence[AdapterTable]) -> list[Adapter]:
    """Return adapters with their newest versions and aliases: two queries, however many they are."""
    ids = [row.id for row in rows]
    # The last step of an index for each adapter; a maximum by group walks through all versions there are.
    newest = (
        select(VersionTable.number)
        .where(VersionTable.adapter_id == AdapterTable.id, VersionTable.deleted_at.is_(None))
        .order_by(VersionTable.number.desc())
        .limit(1)
    )
    number = newest.scalar_subquery().label("number")
    found_numbers = session.execute(select(AdapterTable.id, number).where(AdapterTable.id.in_(ids)))
    numbers = {row.id: row.number for row in found_numbers}
    aliases: dict[int, list[Alias]] = {}
    # Columns alone: rows that the session keeps track of take a sixth longer.
    of_alias = (AliasTable.name, AliasTable.version, AliasTable.revision, AliasTable.moved_at)
    found = select(AliasTable.adapter_id, *of_alias).where(AliasTable.adapter_id.in_(ids))
    for row in session.execute(found.order_by(AliasTable.name)):
        alias = Alias(row.name, row.version, row.revision, row.moved_at)
        aliases.setdefault(row.adapter_id, []).append(alias)
    return [
        Adapter(row.namespace, row.name, row.task, numbers[row.id], tuple(aliases.get(row.id, ())))
        for row in rows
    ]
