"""Where bundles are kept by name: adapters, their numbered versions, and the aliases that point at them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from adapters.backbone import BackboneSpec
from adapters.bundle import Bundle, Manifest, load_bundle, read_manifest
from adapters.errors import BackboneMismatch, Conflict, NotFound
from adapters.reference import DEFAULT_ALIAS, DEFAULT_NAMESPACE, Reference, check_name
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.tables import (
    AdapterTable,
    AliasTable,
    BackboneTable,
    GenerationTable,
    VersionTable,
    now,
)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an adapter, as recorded."""

    namespace: str
    name: str
    number: int
    digest: str
    manifest: Manifest
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name of a version; ``revision`` counts its moves and serves as its ETag."""

    name: str
    version: int
    revision: int
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter with its newest version number and its aliases."""

    namespace: str
    name: str
    task: str
    latest: int
    aliases: tuple[Alias, ...]


class Registry:
    """Adapters, versions and aliases over one database and one blob store."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def add_backbone(self, spec: BackboneSpec) -> None:
        """Record a backbone, so that bundles made for it can be checked."""
        with self._database.write() as session:
            row = session.get(BackboneTable, spec.fingerprint) or BackboneTable(
                fingerprint=spec.fingerprint
            )
            if row.spec == spec.model_dump(mode="json"):
                return
            row.name, row.spec = spec.name, spec.model_dump(mode="json")
            session.add(row)
            _raise_generation(session)

    def get_backbone(self, fingerprint: str) -> BackboneSpec:
        with self._database.read() as session:
            row = session.get(BackboneTable, fingerprint)
            names = list(session.scalars(select(BackboneTable.name)))
        if row is None:
            raise BackboneMismatch(
                f"The bundle was made for a backbone with fingerprint '{fingerprint[:12]}…', which is "
                f"not known here. Known: {', '.join(names) or 'none'}. Train it on one of these, or "
                "start a server with --backbone."
            )
        return BackboneSpec.model_validate(row.spec)

    def create_version(
        self, name: str, folder: Path, *, namespace: str = DEFAULT_NAMESPACE
    ) -> Version:
        """Store a bundle as the next version of an adapter, and return that version.

        Validates, uploads, then records, in that order: a row never points at a missing blob. Two
        callers adding at once get two numbers; a bundle that is already there keeps its number.
        Aliases do not move.

        Raises:
            InvalidBundle: a file is missing, damaged or unsafe.
            BackboneMismatch: its backbone is not known, or earlier versions were made for another.
            Conflict: the adapter's earlier versions are of another task.
        """
        check_name(name, what="adapter name")
        fingerprint = read_manifest(folder).backbone.fingerprint
        bundle = load_bundle(folder, self.get_backbone(fingerprint))
        self._blobs.push(folder, bundle.digest)
        with self._database.write() as session:
            adapter = _get_or_add_adapter(session, namespace, name, bundle)
            version = _get_or_add_version(session, adapter, bundle)
            _raise_generation(session)
            session.flush()
            return _version(version, adapter)

    def resolve(self, reference: Reference) -> Version:
        """Return the version that a reference means now; it stays what it is whatever moves later.

        Raises:
            NotFound: the adapter, the alias or the version is not there.
        """
        with self._database.read() as session:
            adapter = _find_adapter(session, reference.namespace, reference.name)
            number = reference.version
            if number is None:
                alias = _find_alias(session, adapter, reference.alias or DEFAULT_ALIAS)
                if alias is None and reference.alias:
                    raise _no_alias(session, adapter, reference.alias)
                number = alias.version if alias else _latest(session, adapter)
            return _version(_find_version(session, adapter, number), adapter)

    def list_adapters(self, namespace: str = DEFAULT_NAMESPACE) -> list[Adapter]:
        """Return a namespace's adapters, by name."""
        with self._database.read() as session:
            rows = session.scalars(
                select(AdapterTable)
                .where(AdapterTable.namespace == namespace)
                .order_by(AdapterTable.name)
            )
            return [_adapter(session, row) for row in rows]

    def get_adapter(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> Adapter:
        with self._database.read() as session:
            return _adapter(session, _find_adapter(session, namespace, name))

    def list_versions(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> list[Version]:
        """Return an adapter's versions, oldest first."""
        with self._database.read() as session:
            adapter = _find_adapter(session, namespace, name)
            rows = session.scalars(
                select(VersionTable)
                .where(VersionTable.adapter_id == adapter.id)
                .order_by(VersionTable.number)
            )
            return [_version(row, adapter) for row in rows]

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        if_revision: int | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Alias:
        """Point an alias at a version, making the alias if need be.

        Args:
            if_revision: move only if the alias is still at this revision (0: not there yet).

        Raises:
            NotFound: the adapter or the version is not there.
            Conflict: somebody else moved the alias in between.
        """
        check_name(alias, what="alias")
        with self._database.write() as session:
            adapter = _find_adapter(session, namespace, name)
            _find_version(session, adapter, number)
            row = _find_alias(session, adapter, alias)
            current = row.revision if row else 0
            if if_revision is not None and if_revision != current:
                raise Conflict(
                    f"Alias '{alias}' of '{name}' is at revision '{current}', not '{if_revision}': it "
                    "was moved meanwhile. Read it again, then decide.",
                    param="if-match",
                )
            if row is None:
                row = AliasTable(namespace=namespace, adapter_id=adapter.id, name=alias)
                session.add(row)
            row.version, row.revision, row.moved_at = number, current + 1, now()
            _raise_generation(session)
            return _alias(row)

    def generation(self) -> int:
        """Return the number that every write raises."""
        with self._database.read() as session:
            return session.scalars(select(GenerationTable.number)).one()


def _find_adapter(session: Session, namespace: str, name: str) -> AdapterTable:
    adapter = session.scalar(
        select(AdapterTable).where(AdapterTable.namespace == namespace, AdapterTable.name == name)
    )
    if adapter is None:
        names = session.scalars(
            select(AdapterTable.name).where(AdapterTable.namespace == namespace).limit(10)
        )
        known = ", ".join(f"'{known}'" for known in names) or "none yet"
        raise NotFound(f"No adapter named '{name}'. Known: {known}.", param="adapter")
    return adapter


def _find_alias(session: Session, adapter: AdapterTable, alias: str) -> AliasTable | None:
    return session.scalar(
        select(AliasTable).where(AliasTable.adapter_id == adapter.id, AliasTable.name == alias)
    )


def _no_alias(session: Session, adapter: AdapterTable, alias: str) -> NotFound:
    names = session.scalars(select(AliasTable.name).where(AliasTable.adapter_id == adapter.id))
    known = ", ".join(f"'{name}'" for name in names) or "none yet"
    return NotFound(f"'{adapter.name}' has no alias '{alias}'. Known: {known}.", param="adapter")


def _latest(session: Session, adapter: AdapterTable) -> int:
    query = select(func.max(VersionTable.number)).where(VersionTable.adapter_id == adapter.id)
    return session.scalar(query) or 0


def _find_version(session: Session, adapter: AdapterTable, number: int) -> VersionTable:
    row = session.scalar(
        select(VersionTable).where(
            VersionTable.adapter_id == adapter.id, VersionTable.number == number
        )
    )
    if row is None:
        raise NotFound(
            f"'{adapter.name}' has no version '{number}'. Its newest is {_latest(session, adapter)}.",
            param="adapter",
        )
    return row


def _get_or_add_adapter(
    session: Session, namespace: str, name: str, bundle: Bundle
) -> AdapterTable:
    task = bundle.manifest.task
    adapter = session.scalar(
        select(AdapterTable).where(AdapterTable.namespace == namespace, AdapterTable.name == name)
    )
    if adapter is None:
        adapter = AdapterTable(namespace=namespace, name=name, task=task)
        session.add(adapter)
        session.flush()
    elif adapter.task != task:
        raise Conflict(
            f"Adapter '{name}' is for '{adapter.task}'; this bundle is for '{task}'. Give it another name.",
            param="name",
        )
    return adapter


def _get_or_add_version(session: Session, adapter: AdapterTable, bundle: Bundle) -> VersionTable:
    versions = select(VersionTable).where(VersionTable.adapter_id == adapter.id)
    same = session.scalar(versions.where(VersionTable.digest == bundle.digest))
    if same is not None:
        return same
    fingerprint = bundle.manifest.backbone.fingerprint
    other = session.scalar(versions.where(VersionTable.backbone != fingerprint).limit(1))
    if other is not None:
        raise BackboneMismatch(
            f"Versions of '{adapter.name}' are for the backbone with fingerprint "
            f"'{other.backbone[:12]}…', this bundle for '{fingerprint[:12]}…'. Give it another name."
        )
    row = VersionTable(
        namespace=adapter.namespace,
        adapter_id=adapter.id,
        number=_latest(session, adapter) + 1,
        digest=bundle.digest,
        backbone=fingerprint,
        manifest=bundle.manifest.model_dump(mode="json"),
        created_at=now(),
    )
    session.add(row)
    return row


def _raise_generation(session: Session) -> None:
    session.execute(update(GenerationTable).values(number=GenerationTable.number + 1))


def _version(row: VersionTable, adapter: AdapterTable) -> Version:
    manifest = Manifest.model_validate(row.manifest)
    return Version(
        adapter.namespace, adapter.name, row.number, row.digest, manifest, row.created_at
    )


def _alias(row: AliasTable) -> Alias:
    return Alias(row.name, row.version, row.revision, row.moved_at)


def _adapter(session: Session, row: AdapterTable) -> Adapter:
    aliases = session.scalars(
        select(AliasTable).where(AliasTable.adapter_id == row.id).order_by(AliasTable.name)
    )
    return Adapter(
        row.namespace, row.name, row.task, _latest(session, row), tuple(map(_alias, aliases))
    )
