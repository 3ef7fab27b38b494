"""API keys: made once and shown once, kept as hashes, bound to a namespace and to what they may do."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import func, select

from adapters.errors import InvalidRequest, NotFound
from adapters.reference import DEFAULT_NAMESPACE, check_name
from adapters.registry.database import Database
from adapters.registry.tables import now
from adapters.validation import listed
from service.access.tables import KeyTable

Scope = Literal["predict", "adapters:write", "jobs", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
MOST_SECRET = 128  # characters, twice as many as there are in ours
_PREFIX = "hs"
_MOST_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret."""

    id: str
    namespace: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    max_jobs: int | None = None

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    """Keys over the registry's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        days: float | None = None,
        max_jobs: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key; returns it and its secret, which nobody can tell again.

        Args:
            max_jobs: that it ordered and that have not ended; without a bound if None.

        Raises:
            InvalidRequest: a name, scope or time can't be taken.
        """
        check_name(name, what="name of a key")
        check_name(namespace, what="namespace")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(
                f"{listed(unknown) or 'No scope'} is not what a key may do; there are {listed(SCOPES)}.",
                param="scopes",
            )
        if days is not None and not 0 < days <= _MOST_DAYS:
            raise InvalidRequest(
                f"A key can't expire in '{days}' days; more than 0 and at most {_MOST_DAYS}.",
                param="days",
            )
        if max_jobs is not None and max_jobs < 0:
            raise InvalidRequest(
                f"A key can't have '{max_jobs}' jobs at most; 0 or more.", param="max_jobs"
            )
        made_at = now()
        identity = secrets.token_hex(8)
        secret = f"{_PREFIX}-{identity}-{secrets.token_urlsafe(32)}"
        row = KeyTable(
            id=identity,
            namespace=namespace,
            name=name,
            scopes=sorted(set(scopes)),
            max_jobs=max_jobs,
            sha256=_hash(secret),
            created_at=made_at,
            expires_at=None if days is None else made_at + timedelta(days=days),
        )
        with self._database.write() as session:
            session.add(row)
            return _key_of(row), secret

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, be it valid or not; None if there is none."""
        with self._database.read() as session:
            row = session.scalar(select(KeyTable).where(KeyTable.sha256 == _hash(secret)))
            return None if row is None else _key_of(row)

    def list_keys(self) -> list[Key]:
        """Return all keys, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(select(KeyTable).order_by(KeyTable.created_at))
            return [_key_of(row) for row in rows]

    def revoke(self, key: str) -> Key:
        """Make a key useless for good.

        Raises:
            NotFound: there is none with this id.
        """
        with self._database.write() as session:
            row = session.get(KeyTable, key)
            if row is None:
                raise NotFound(
                    f"No key '{key}'. 'headstock keys list' shows their ids.", param="key"
                )
            row.revoked_at = row.revoked_at or now()
            return _key_of(row)

    def is_any(self) -> bool:
        with self._database.read() as session:
            return bool(session.scalar(select(func.count()).select_from(KeyTable)))


def _hash(secret: str) -> str:
    """Return a SHA-256: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_of(row: KeyTable) -> Key:
    return Key(
        row.id,
        row.namespace,
        row.name,
        tuple(row.scopes),
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.max_jobs,
    )
