"""The run's side of the contract: numbered events, appended to a file as they happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.errors import HeadstockError
from training.contract import Event, EventKind

_SECONDS_BETWEEN = 0.5


class EventLog:
    """Appends events to ``events.jsonl``, going on from the last number if the file is there.

    Args:
        listeners: told each event after it is written; one that fails is not told any more, and the log says so.
    """

    def __init__(self, path: Path, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        self._path = path
        self._listeners = list(listeners)
        self._number = _last_number(path)
        self.seconds: dict[str, float] = {}

    def emit(self, kind: EventKind, message: str, **data: Any) -> None:
        self._number += 1
        event = Event(number=self._number, time=time.time(), kind=kind, message=message, data=data)
        with self._path.open("a") as file:
            file.write(event.model_dump_json() + "\n")
        for listener in list(self._listeners):
            self._tell(listener, event)

    def _tell(self, listener: Callable[[Event], None], event: Event) -> None:
        try:
            listener(event)
        except HeadstockError:
            raise  # not the listener's own: a signal came meanwhile
        except Exception as error:
            # A tracker's full disk or lost server is no reason to lose a fit.
            self._listeners.remove(listener)
            self.emit(EventKind.WARNING, f"Tracking ended: {type(error).__name__}: {error}")

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
        self._first: tuple[float, float] | None = (
            None  # when it was told of first, and how much was done
        )

    def update(self, done: float, **data: Any) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        if now - self._told < _SECONDS_BETWEEN and done < self._total:
            return
        self._told = now
        left = self._seconds_left(now, done)
        self._log.emit(
            EventKind.PROGRESS,
            f"{self._stage} {done:.0f}/{self._total:.0f}",
            stage=self._stage,
            done=done,
            total=self._total,
            eta_seconds=None if left is None else round(left, 1),
            **data,
        )

    def _seconds_left(self, now: float, done: float) -> float | None:
        """Tell by the pace since the first update, for a run that goes on has not done all of it now."""
        assert self._first is not None
        begin, before = self._first
        if done > before:
            return (now - begin) * (self._total - done) / (done - before)
        return (now - self._begin) * (self._total - done) / done if done else None


class Pace:
    """Rows and tokens a second, since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._rows = self._tokens = 0

    def update(self, rows: int, tokens: int) -> dict[str, float]:
        self._rows += rows
        self._tokens += tokens
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return {
            "rows_per_second": round(self._rows / seconds, 2),
            "tokens_per_second": round(self._tokens / seconds, 1),
        }


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
