"""The registry's tables. Every row that belongs to a tenant carries its namespace."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, String, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime:
    return datetime.now(UTC)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite gives it back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Tables of the registry."""


class BackboneTable(Base):
    __tablename__ = "backbones"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)


class AdapterTable(Base):
    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("namespace", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    task: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)


class VersionTable(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "digest"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64))
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    backbone: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    note: Mapped[str] = mapped_column(String(2000), default="")
    tags: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    # A tombstone: requests in flight still need the row and its bytes, new ones do not find it.
    deleted_at: Mapped[datetime | None] = mapped_column(Moment, index=True)


class AliasTable(Base):
    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("adapter_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64))
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(default=1)
    moved_at: Mapped[datetime] = mapped_column(Moment, default=now)


class AliasMoveTable(Base):
    """Each move of an alias, which is kept when the alias goes."""

    __tablename__ = "alias_moves"
    __table_args__ = (UniqueConstraint("adapter_id", "alias", "revision"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64))
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[str] = mapped_column(String(64))
    revision: Mapped[int]
    version: Mapped[int | None]
    is_rollback: Mapped[bool] = mapped_column(default=False)
    moved_at: Mapped[datetime] = mapped_column(Moment, default=now)


class GenerationTable(Base):
    """One row, whose number every write to the registry raises: caches compare it."""

    __tablename__ = "generations"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
