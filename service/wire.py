"""The pipe between the API and the engine's process, and what goes over it.

A pipe of its own for each life of that process: what a killed one leaves behind goes with its pipe, so that no answer
can reach another call, and the end of the pipe is how either side learns that the other is gone.
"""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from adapters.runtime.rows import Row, RowPart, RowResult
from adapters.runtime.stats import EngineStats


@dataclass(frozen=True, slots=True)
class RunRows:
    """Run these rows; the last reply is `RowsDone`, with `RowParts` before it for rows that stream."""

    rows: list[Row]


@dataclass(frozen=True, slots=True)
class ReadStats:
    """The reply is the engine's `EngineStats` (adapters.runtime.stats)."""


@dataclass(frozen=True, slots=True)
class CancelRows:
    """Forget these rows; nobody waits for them any more, and there is no reply."""

    row_ids: list[str]


@dataclass(frozen=True, slots=True)
class HoldAdapter:
    """Bring an adapter in ahead of requests, keep it in, or no longer; the reply is the engine's `EngineStats`."""

    digest: str
    how: Literal["warm", "pin", "unpin"]


Message = RunRows | ReadStats | CancelRows | HoldAdapter


@dataclass(frozen=True, slots=True)
class RowParts:
    """What one step made of a call's streaming rows."""

    parts: list[RowPart]


@dataclass(frozen=True, slots=True)
class RowsDone:
    """Every row of a call, in the call's order."""

    results: list[RowResult]


Reply = RowParts | RowsDone | EngineStats


@dataclass(frozen=True, slots=True)
class Ready:
    """The first word of an engine's process: it can take calls now."""


class WireClosed(Exception):
    """The process at the other end is gone."""


class Wire:
    """One end of a pipe. One thread may send while another receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        """Send an object; blocks while the pipe is full.

        Raises:
            WireClosed: nobody can read it.
        """
        try:
            # Plain pickle: the connection's own makes a new dispatch table for every message.
            self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise WireClosed from error

    def receive(self) -> Any:
        """Return the next object; blocks until there is one.

        Raises:
            WireClosed: there will be none.
        """
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise WireClosed from error
        return pickle.loads(data)

    def has_message(self) -> bool:
        """Tell whether `receive` would return, or raise, at once."""
        try:
            return self._connection.poll()
        except OSError as error:
            raise WireClosed from error

    def close(self) -> None:
        self._connection.close()


def open_wire() -> tuple[Wire, Wire]:
    """Return the two ends of a new pipe."""
    ours, theirs = multiprocessing.Pipe()
    return Wire(ours), Wire(theirs)
