"""What keeps an order out of the queue: that it is there already, or that too many of its caller's are."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from adapters.errors import Conflict, Overloaded
from service.jobs.orders import JobOrder
from service.jobs.tables import JobTable


def dumped(order: JobOrder) -> dict[str, Any]:
    """Return an order as it is kept."""
    return order.model_dump(mode="json", by_alias=True)


def jobs_of(namespace: str) -> Select[JobTable]:
    return select(JobTable).where(JobTable.namespace == namespace)


def made_by(session: Session, order: JobOrder, namespace: str, key: str) -> JobTable | None:
    """Return the job that an order made when it came with this key before; None if the key is new.

    Raises:
        Conflict: the key was used for another order.
    """
    made = session.scalar(jobs_of(namespace).where(JobTable.idempotency_key == key))
    if made is not None and made.order != dumped(order):
        raise Conflict(
            f"Idempotency-Key '{key}' was used for another order, job '{made.id}'. Send a new key with a new order.",
            param="Idempotency-Key",
        )
    return made


def check_quota(session: Session, jobs: Select[JobTable], most: int | None) -> None:
    """Raise `Overloaded` if of some jobs as many have not ended as may."""
    if most is None:
        return
    active = jobs.where(JobTable.finished_at.is_(None))
    count = session.scalar(active.with_only_columns(func.count())) or 0
    if count >= most:
        raise Overloaded(
            f"'{count}' jobs wait or run, and '{most}' may. Wait until one has ended, or cancel one."
        )
