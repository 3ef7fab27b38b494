"""The backbones that the registry knows: what bundles are checked against."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.backbone import BackboneSpec
from adapters.errors import BackboneMismatch
from adapters.registry.tables import BackboneTable


def is_known(session: Session, spec: BackboneSpec) -> bool:
    """Tell whether a backbone is recorded as it is now: its folder may have moved."""
    row = session.get(BackboneTable, spec.fingerprint)
    return row is not None and row.spec == spec.model_dump(mode="json")


def put_backbone(session: Session, spec: BackboneSpec) -> None:
    session.merge(
        BackboneTable(
            fingerprint=spec.fingerprint, name=spec.name, spec=spec.model_dump(mode="json")
        )
    )


def all_backbones(session: Session) -> list[BackboneSpec]:
    """Return the known backbones, by name."""
    rows = session.scalars(select(BackboneTable).order_by(BackboneTable.name))
    return [BackboneSpec.model_validate(row.spec) for row in rows]


def find_backbone_spec(session: Session, fingerprint: str) -> BackboneSpec:
    """Return a backbone by its fingerprint.

    Raises:
        BackboneMismatch: it is not known.
    """
    row = session.get(BackboneTable, fingerprint)
    if row is None:
        names = ", ".join(session.scalars(select(BackboneTable.name))) or "none"
        raise BackboneMismatch(
            f"The bundle was made for a backbone with fingerprint '{fingerprint[:12]}…', which is "
            f"not known here. Known: {names}. Train it on one of these, or start a server with --backbone."
        )
    return BackboneSpec.model_validate(row.spec)
