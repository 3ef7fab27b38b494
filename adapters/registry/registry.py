"""Where bundles are kept by name: adapters, their numbered versions, and the aliases that point at them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adapters.backbone import BackboneSpec
from adapters.bundle import load_bundle, read_manifest
from adapters.importing import import_stock, is_stock
from adapters.reference import DEFAULT_ALIAS, DEFAULT_NAMESPACE, Reference, check_name
from adapters.registry.aliases import (
    alias_moves,
    check_revision,
    move_alias,
    remove_alias,
    roll_back,
)
from adapters.registry.backbones import all_backbones, find_backbone_spec, is_known, put_backbone
from adapters.registry.blobs import BlobStore
from adapters.registry.collection import collect_blobs, needed_digests
from adapters.registry.database import Database
from adapters.registry.lookups import (
    adapters_of,
    any_alias,
    any_version,
    find_adapter,
    find_alias,
    find_version,
    latest,
    live_adapters,
    live_versions,
)
from adapters.registry.notes import check_note, check_tags
from adapters.registry.promotion import Promotion, Rule, check_rule, compare
from adapters.registry.records import (
    Adapter,
    Alias,
    AliasMove,
    Version,
    alias_of,
    move_of,
    version_of,
)
from adapters.registry.tables import (
    AdapterTable,
    AliasTable,
    GenerationTable,
    VersionTable,
    now,
)
from adapters.registry.versions import bury, get_or_add_adapter, get_or_add_version

_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Registry:
    """Adapters, versions and aliases over one database and one blob store.

    Attributes:
        num_own_writes: through this very object; with `generation`, it tells at once that something changed.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs
        self.num_own_writes = 0

    @property
    def is_shared(self) -> bool:
        """Tell whether other machines may write to it too, and reading its generation takes a round trip."""
        return self._database.is_shared

    def add_backbone(self, spec: BackboneSpec) -> None:
        """Record a backbone, so that bundles made for it can be checked."""
        with self._database.read() as session:
            if is_known(session, spec):
                return
        with self._change() as session:
            put_backbone(session, spec)

    def get_backbone(self, fingerprint: str) -> BackboneSpec:
        """Return a backbone; raise `BackboneMismatch` if it is not known."""
        with self._database.read() as session:
            return find_backbone_spec(session, fingerprint)

    def list_backbones(self) -> list[BackboneSpec]:
        """Return the backbones that bundles may be made for, by name."""
        with self._database.read() as session:
            return all_backbones(session)

    def create_version(
        self,
        name: str,
        folder: Path,
        *,
        note: str = "",
        tags: Mapping[str, str] = _NO_TAGS,
        backbone: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Version:
        """Store a bundle, or a stock PEFT folder, as the next version of an adapter, and return that version.

        Validates, uploads, then records, in that order: a row never points at a missing blob. Two
        callers adding at once get two numbers; a bundle that is already there keeps its number, note and
        tags, and one that was deleted comes back under its old number. Aliases do not move.

        Args:
            backbone: name of the one that a stock PEFT folder was made for, if its config does not tell.

        Raises:
            InvalidRequest: the name, the note or a tag can't be taken.
            InvalidBundle: a file is missing, damaged or unsafe.
            BackboneMismatch: its backbone is not known, or earlier versions were made for another.
            Conflict: the adapter's earlier versions are of another task.
        """
        check_name(name, what="adapter name")
        check_note(note)
        check_tags(tags)
        if is_stock(folder):
            with tempfile.TemporaryDirectory(prefix="headstock-import-") as made:
                import_stock(folder, Path(made), self.list_backbones(), backbone)
                return self.create_version(
                    name, Path(made), note=note, tags=tags, namespace=namespace
                )
        fingerprint = read_manifest(folder).backbone.fingerprint
        bundle = load_bundle(folder, self.get_backbone(fingerprint))
        self._blobs.push(folder, bundle.digest)
        with self._change() as session:
            adapter = get_or_add_adapter(session, namespace, name, bundle)
            version = get_or_add_version(session, adapter, bundle, note, tags)
            session.flush()
            # Once more, now that nothing is collected meanwhile: a deleted version's bytes may just have gone.
            self._blobs.push(folder, bundle.digest)
            return version_of(version, adapter)

    def resolve(self, reference: Reference) -> Version:
        """Return the version that a reference means now; it stays what it is whatever moves later.

        Raises:
            NotFound: the adapter, the alias or the version is not there.
        """
        with self._database.read() as session:
            adapter = find_adapter(session, reference.namespace, reference.name)
            number = reference.version
            if number is None:
                if reference.alias:
                    alias: AliasTable | None = find_alias(session, adapter, reference.alias)
                else:
                    alias = any_alias(session, adapter, DEFAULT_ALIAS)
                number = alias.version if alias else latest(session, adapter)
            return version_of(find_version(session, adapter, number), adapter)

    def recall(self, name: str, number: int, namespace: str = DEFAULT_NAMESPACE) -> Version | None:
        """Return a version, be it deleted or not; None if there never was one."""
        with self._database.read() as session:
            return any_version(session, namespace, name, number)

    def fetch(self, version: Version) -> Path:
        """Return a local folder with a version's bundle, which is not the caller's to change.

        Raises:
            NotFound: the blob store has lost it.
        """
        return self._blobs.fetch(version.digest)

    def list_adapters(
        self, namespace: str = DEFAULT_NAMESPACE, *, after: str = "", limit: int | None = None
    ) -> list[Adapter]:
        """Return a namespace's adapters, by name; of those behind ``after``, ``limit`` at most."""
        with self._database.read() as session:
            query = live_adapters(namespace).where(AdapterTable.name > after).limit(limit)
            return adapters_of(session, list(session.scalars(query)))

    def get_adapter(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> Adapter:
        with self._database.read() as session:
            return adapters_of(session, [find_adapter(session, namespace, name)])[0]

    def list_versions(
        self,
        name: str,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[Version]:
        """Return an adapter's versions, oldest first; of those ``before`` a number, the newest ``limit``."""
        with self._database.read() as session:
            adapter = find_adapter(session, namespace, name)
            query = live_versions(adapter).order_by(VersionTable.number.desc()).limit(limit)
            if before is not None:
                query = query.where(VersionTable.number < before)
            return [version_of(row, adapter) for row in reversed(list(session.scalars(query)))]

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
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            return alias_of(move_alias(session, adapter, alias, number, if_revision))

    def promote(
        self,
        name: str,
        alias: str,
        number: int,
        rule: Rule,
        *,
        if_revision: int | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Promotion:
        """Point an alias at a version if that gains enough over what it points at now, or say why not.

        Raises:
            InvalidRequest: the rule makes no sense.
            NotFound: the adapter or the version is not there.
            Conflict: the two can't be compared, or somebody else moved the alias in between.
        """
        check_name(alias, what="alias")
        check_rule(rule)
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            candidate = version_of(find_version(session, adapter, number), adapter)
            row = any_alias(session, adapter, alias)
            check_revision(adapter, alias, row, if_revision)
            current = None
            if row is not None:
                current = version_of(find_version(session, adapter, row.version), adapter).manifest
            found = compare(candidate.manifest, current, rule)
            if not found.is_met:
                return Promotion(alias_of(row) if row else None, False, found)
            row = move_alias(session, adapter, alias, number, if_revision)
            return Promotion(alias_of(row), True, found)

    def roll_back(
        self,
        name: str,
        alias: str,
        *,
        if_revision: int | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Alias:
        """Point an alias back at what it pointed at before; once more goes one further back.

        Raises:
            NotFound: the adapter or the alias is not there.
            Conflict: nothing comes before, or somebody else moved the alias in between.
        """
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            return alias_of(roll_back(session, adapter, alias, if_revision))

    def remove_alias(
        self,
        name: str,
        alias: str,
        *,
        if_revision: int | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        """Take an alias away; its history stays.

        Raises:
            NotFound: the adapter or the alias is not there.
            Conflict: somebody else moved the alias in between.
        """
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            remove_alias(session, adapter, alias, if_revision)

    def get_alias(self, name: str, alias: str, namespace: str = DEFAULT_NAMESPACE) -> Alias:
        with self._database.read() as session:
            return alias_of(find_alias(session, find_adapter(session, namespace, name), alias))

    def list_moves(
        self, name: str, alias: str, namespace: str = DEFAULT_NAMESPACE
    ) -> list[AliasMove]:
        """Return an alias's history, oldest first; none if it never was."""
        with self._database.read() as session:
            adapter = find_adapter(session, namespace, name)
            return [move_of(row) for row in alias_moves(session, adapter, alias)]

    def annotate(
        self,
        name: str,
        number: int,
        *,
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Version:
        """Replace a version's note or tags, or both; None leaves what is there.

        Raises:
            NotFound: the adapter or the version is not there.
            InvalidRequest: the note or a tag can't be taken.
        """
        check_note(note or "")
        check_tags(tags or {})
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            row = find_version(session, adapter, number)
            row.note = row.note if note is None else note
            row.tags = row.tags if tags is None else dict(tags)
            return version_of(row, adapter)

    def delete_version(
        self,
        name: str,
        number: int,
        *,
        force: bool = False,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        """Bury a version: new requests do not find it, those in flight finish; its bytes go by `collect`.

        Args:
            force: take away the aliases that point at it.

        Raises:
            NotFound: the adapter or the version is not there.
            Conflict: an alias points at it.
        """
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            bury(session, adapter, [find_version(session, adapter, number)], force=force)

    def delete_adapter(
        self, name: str, *, force: bool = False, namespace: str = DEFAULT_NAMESPACE
    ) -> None:
        """Bury all versions of an adapter. Its name may be used again, for another task too; its numbers go on.

        Args:
            force: take away its aliases.

        Raises:
            NotFound: the adapter is not there.
            Conflict: it has aliases.
        """
        with self._change() as session:
            adapter = find_adapter(session, namespace, name)
            rows = list(session.scalars(live_versions(adapter)))
            bury(session, adapter, rows, force=force)

    def collect(self, min_age: timedelta) -> list[str]:
        """Remove the bytes that no version needs any more, some at a time; returns their digests.

        Args:
            min_age: how long ago a version must have been deleted, or bytes stored that no version ever got: longer
                than any request or upload takes.
        """
        moment = now() - min_age
        with self._database.read() as session:
            needed = set(session.scalars(needed_digests(moment)))
        unneeded = [d for d in self._blobs.stored_before(moment) if d not in needed]
        gone = collect_blobs(self._blobs, unneeded, moment, self._change)
        self._blobs.remove_leftovers(moment)
        return gone

    def generation(self) -> int:
        """Return the number that every write raises."""
        with self._database.read() as session:
            return session.scalars(select(GenerationTable.number)).one()

    @contextmanager
    def _change(self) -> Iterator[Session]:
        """Give a session for a write, which waits for those before it and makes those after it wait."""
        with self._database.write() as session:
            session.execute(update(GenerationTable).values(number=GenerationTable.number + 1))
            yield session
        self.num_own_writes += 1
