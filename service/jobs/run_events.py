"""A run's events as its job tells them: read as they are appended, and put into OpenAI's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.contract import Event, EventKind

_LEVELS = {EventKind.WARNING: "warn", EventKind.FAILED: "error"}


def read_events(path: Path, position: int) -> tuple[list[Event], int]:
    """Return the whole events behind a position in a run's file, and the position behind them."""
    events: list[Event] = []
    if not path.is_file():
        return events, position
    with path.open("rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break  # half a line: the rest comes with the next look
            position += len(line)
            events.append(Event.model_validate_json(line))
    return events, position


def as_job_event(event: Event) -> dict[str, Any]:
    """Return an event of a run as one of its job: ``metrics`` carry numbers, all else is a ``message``."""
    is_metrics = event.kind in (EventKind.PROGRESS, EventKind.METRICS)
    data: dict[str, Any] = event.data
    if event.kind == EventKind.PROGRESS:
        data = _step_metrics(event)
    elif event.kind == EventKind.FINISHED:
        data = {}  # the result is the job's own
    return {
        "level": _LEVELS.get(event.kind, "info"),
        "kind": "metrics" if is_metrics else "message",
        "message": event.message,
        "data": data,
    }


def progress_of(event: Event) -> dict[str, Any]:
    """Return how far a run is: stage, what is done of what, seconds left, and the last numbers."""
    return {key: value for key, value in event.data.items() if value is not None}


def _step_metrics(event: Event) -> dict[str, Any]:
    """Return a step's numbers under OpenAI's names, where it has some."""
    names = {"done": "step", "total": "total_steps", "loss": "train_loss"}
    return {names.get(key, key): value for key, value in event.data.items()}
