"""Aliases and their history: moved, rolled back, taken away. Each move is kept, and none is made on old knowledge."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapters.errors import Conflict
from adapters.registry.lookups import any_alias, find_alias, find_version, live_versions
from adapters.registry.tables import AdapterTable, AliasMoveTable, AliasTable, VersionTable, now


def move_alias(
    session: Session,
    adapter: AdapterTable,
    alias: str,
    number: int,
    if_revision: int | None,
    *,
    is_rollback: bool = False,
) -> AliasTable:
    """Point an alias at a version, making the alias if need be.

    Raises:
        NotFound: the version is not there.
        Conflict: the alias is not at ``if_revision``.
    """
    find_version(session, adapter, number)
    row = any_alias(session, adapter, alias)
    check_revision(adapter, alias, row, if_revision)
    revision = _next_revision(session, adapter, alias)
    if row is None:
        row = AliasTable(namespace=adapter.namespace, adapter_id=adapter.id, name=alias)
    row.version, row.revision, row.moved_at = number, revision, now()
    session.add(row)
    _record(session, adapter, row, number, is_rollback)
    return row


def roll_back(
    session: Session, adapter: AdapterTable, alias: str, if_revision: int | None
) -> AliasTable:
    """Point an alias at the version before the one it points at; once more goes one further back.

    Raises:
        NotFound: the alias is not there.
        Conflict: it points at no earlier version that is still there, or is not at ``if_revision``.
    """
    row = find_alias(session, adapter, alias)
    earlier = _earlier(session, adapter, row)
    if earlier is None:
        raise Conflict(
            f"Alias '{alias}' of '{adapter.name}' has pointed at no version before '{row.version}' that is still "
            "there. Set it to a version by number.",
            param="alias",
        )
    return move_alias(session, adapter, alias, earlier, if_revision, is_rollback=True)


def remove_alias(
    session: Session, adapter: AdapterTable, alias: str, if_revision: int | None
) -> None:
    """Take an alias away; its history stays.

    Raises:
        NotFound: the alias is not there.
        Conflict: it is not at ``if_revision``.
    """
    row = find_alias(session, adapter, alias)
    check_revision(adapter, alias, row, if_revision)
    row.revision, row.moved_at = _next_revision(session, adapter, alias), now()
    _record(session, adapter, row, None, False)
    session.delete(row)


def alias_moves(session: Session, adapter: AdapterTable, alias: str) -> list[AliasMoveTable]:
    """Return an alias's history, oldest first."""
    moves = select(AliasMoveTable).where(
        AliasMoveTable.adapter_id == adapter.id, AliasMoveTable.alias == alias
    )
    return list(session.scalars(moves.order_by(AliasMoveTable.revision)))


def _earlier(session: Session, adapter: AdapterTable, row: AliasTable) -> int | None:
    """Return what the alias pointed at before: a move adds to the path, a rollback takes from it."""
    path: list[int] = []
    for move in alias_moves(session, adapter, row.name):
        if move.version is None:
            path.clear()
        elif not move.is_rollback:
            path.append(move.version)
        else:  # back to where it was last, for it may have been there before that too
            del path[-1:]
            while path and path[-1] != move.version:
                path.pop()
    there = set(session.scalars(live_versions(adapter).with_only_columns(VersionTable.number)))
    return next((n for n in reversed(path[:-1]) if n in there and n != row.version), None)


def _next_revision(session: Session, adapter: AdapterTable, alias: str) -> int:
    """Return a revision that this alias never had: an ETag from before it was taken away must not fit it."""
    revisions = select(func.max(AliasMoveTable.revision)).where(
        AliasMoveTable.adapter_id == adapter.id, AliasMoveTable.alias == alias
    )
    return (session.scalar(revisions) or 0) + 1


def _record(
    session: Session, adapter: AdapterTable, row: AliasTable, number: int | None, is_rollback: bool
) -> None:
    session.add(
        AliasMoveTable(
            namespace=adapter.namespace,
            adapter_id=adapter.id,
            alias=row.name,
            revision=row.revision,
            version=number,
            is_rollback=is_rollback,
            moved_at=row.moved_at,
        )
    )
    session.flush()


def check_revision(
    adapter: AdapterTable, alias: str, row: AliasTable | None, if_revision: int | None
) -> None:
    """Raise Conflict if an alias, ``row`` or not there yet (revision 0), is not at ``if_revision``."""
    current = row.revision if row else 0
    if if_revision is not None and if_revision != current:
        raise Conflict(
            f"Alias '{alias}' of '{adapter.name}' is at revision '{current}', not '{if_revision}': it "
            "was moved meanwhile. Read it again, then decide.",
            param="if-match",
        )
