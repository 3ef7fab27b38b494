"""How the bytes that no version needs go: in parts, so that whoever registers meanwhile waits for one at most."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from time import sleep

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from adapters.registry.blobs import BlobStore
from adapters.registry.tables import VersionTable

_AT_ONCE = 10  # bundles of a part: a remote store takes some requests for each
_BREATH_SECONDS = 0.11  # between two parts: who waits for SQLite looks every 0.1 s


def needed_digests(moment: datetime) -> Select[str]:
    """Return a query for the bundles of versions that are there, or were deleted after a moment."""
    return select(VersionTable.digest).where(
        VersionTable.deleted_at.is_(None) | (VersionTable.deleted_at > moment)
    )


def collect_blobs(
    blobs: BlobStore,
    digests: list[str],
    moment: datetime,
    change: Callable[[], AbstractContextManager[Session]],
) -> list[str]:
    """Remove bundles, but none that is needed by now; returns those that are gone.

    Args:
        change: gives a session while nobody registers.
    """
    gone: list[str] = []
    for begin in range(0, len(digests), _AT_ONCE):
        if begin:
            sleep(_BREATH_SECONDS)
        part = digests[begin : begin + _AT_ONCE]
        with change() as session:
            needed = needed_digests(moment).where(VersionTable.digest.in_(part))
            back = set(session.scalars(needed))
            for digest in part:
                if digest not in back:
                    blobs.remove(digest)
                    gone.append(digest)
    return gone
