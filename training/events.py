"""The run's side of the contract: numbered events, appended to a file as they happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.contract import Event, EventKind

_SECONDS_BETWEEN = 0.5


class EventLog:
    """Appends events to ``events.jsonl``, going on from the last number if the file is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = _last_number(path)
        self.seconds: dict[str, float] = {}

    def emit(self, kind: EventKind, message: str, **data: Any) -> None:
        self._number += 1
        event = Event(number=self._number, time=time.time(), kind=kind, message=message, data=data)
        with self._path.open("a") as file:
            file.write(event.model_dump_json() + "\n")

    @contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        """Announce a part of the run and keep its seconds."""
        self.emit(EventKind.STAGE, message, stage=name)
        begin = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def progress(self, stage: str, total: float) -> Progress:
        return Progress(self, stage, total)


class Progress:
    """Tells how far a stage is, at most twice a second, with the time left at the pace so far."""

    def __init__(self, log: EventLog, stage: str, total: float) -> None:
        self._log, self._stage, self._total = log, stage, total
        self._begin = self._told = time.monotonic()

    def update(self, done: float, **data: Any) -> None:
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN and done < self._total:
            return
        self._told = now
        left = (now - self._begin) * (self._total - done) / done if done else None
        self._log.emit(
            EventKind.PROGRESS,
            f"{self._stage} {done:.0f}/{self._total:.0f}",
            stage=self._stage,
            done=done,
            total=self._total,
            eta_seconds=None if left is None else round(left, 1),
            **data,
        )


def _last_number(path: Path) -> int:
    """Return the number of the last whole event; half a line, left by a run that was killed, is cut off."""
    if not path.is_file():
        return 0
    whole = path.read_bytes().rpartition(b"\n")[0]
    if not whole:
        path.write_bytes(b"")
        return 0
    path.write_bytes(whole + b"\n")
    return Event.model_validate_json(whole.rpartition(b"\n")[2]).number
