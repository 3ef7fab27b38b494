"""Tells an address of the user's when jobs end, as OpenAI's webhooks do: signed, and again until it is taken.

The ``openai`` package's ``client.webhooks.unwrap`` checks and reads what is sent.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import or_, select

from adapters.errors import Unavailable
from adapters.registry.database import Database
from adapters.registry.tables import now
from service.jobs.records import Job, job_of
from service.jobs.signatures import signature, signing_key
from service.jobs.states import ENDED
from service.jobs.tables import JobTable

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_TIMEOUT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=5), timedelta(hours=1)
_GIVE_UP = timedelta(days=3)  # after the job's end, as OpenAI does


class Webhooks:
    """Sends an event for every job that ends. What was sent stands in the database, so that none is lost or forgotten.

    An event may come twice, if a server dies just after sending it: its ``webhook-id`` is the same.

    Args:
        url: takes ``POST``; what it answers with 2xx is taken.
        secret: ``whsec_`` and base64, or any text.
    """

    def __init__(self, database: Database, url: str, secret: str) -> None:
        self._database = database
        self._url = url
        self._key = signing_key(secret)

    def start(self) -> None:
        """Send from a thread, as long as this process lives."""
        threading.Thread(target=self._send_for_ever, name="webhooks", daemon=True).start()

    def send_next(self) -> bool:
        """Send the event that is due, if there is one; returns whether there was."""
        job = self._claim()
        if job is None:
            return False
        try:
            body = json.dumps(_event(job)).encode()
            headers = _headers(job, body, self._key)
            response = httpx.post(
                self._url, content=body, headers=headers, timeout=_TIMEOUT_SECONDS
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            logger.warning("The webhook did not take that job '%s' has ended: %s", job.id, error)
        else:
            self._note(job)
        return True

    def _send_for_ever(self) -> None:
        while True:
            try:
                has_sent = self.send_next()
            except Unavailable as error:
                logger.warning("%s", error.message)
                has_sent = False
            if not has_sent:
                time.sleep(_LOOK_SECONDS)

    def _claim(self) -> Job | None:
        """Return a job whose end is to be told, with its next try put off: no other server sends it meanwhile."""
        moment = now()
        due = (
            select(JobTable)
            .where(
                JobTable.status.in_(ENDED),
                JobTable.told_at.is_(None),
                JobTable.finished_at > moment - _GIVE_UP,
                or_(JobTable.tell_at.is_(None), JobTable.tell_at <= moment),
            )
            .order_by(JobTable.finished_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as session:
            row = session.scalar(due)
            if row is None:
                return None
            row.tell_at = moment + min(_FIRST_PAUSE * 2 ** min(row.num_told, 20), _LONGEST_PAUSE)
            row.num_told += 1
            return job_of(row)

    def _note(self, job: Job) -> None:
        with self._database.write() as session:
            row = session.scalar(select(JobTable).where(JobTable.id == job.id))
            if row is not None:  # it may be too old to be kept by now
                row.told_at = now()


def _event(job: Job) -> dict[str, Any]:
    assert job.finished_at is not None
    return {
        "id": _event_id(job),
        "object": "event",
        "created_at": int(job.finished_at.timestamp()),
        "type": f"fine_tuning.job.{job.status}",
        "data": {"id": job.id},
    }


def _headers(job: Job, body: bytes, key: bytes) -> dict[str, str]:
    seconds = int(time.time())
    return {
        "content-type": "application/json",
        "webhook-id": _event_id(job),
        "webhook-timestamp": str(seconds),
        "webhook-signature": signature(key, _event_id(job), seconds, body),
    }


def _event_id(job: Job) -> str:
    return f"evt_{job.id.removeprefix('ftjob-')}"
