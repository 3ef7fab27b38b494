"""The engine's process: takes calls off the wire, steps the engine, and sends back what each step gave."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapters.errors import HeadstockError, PredictionFailed
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row, RowPart, RowResult
from service.wire import (
    CancelRows,
    HoldAdapter,
    Message,
    ReadStats,
    Ready,
    Reply,
    RowParts,
    RowsDone,
    RunRows,
    Wire,
    WireClosed,
)

logger = logging.getLogger(__name__)
_LOAD_WAIT_SECONDS = 0.005


@dataclass(slots=True)
class _Call:
    """A call in the engine, and its rows' results so far, in the rows' order."""

    uid: int
    results: dict[str, RowResult | None]


class Worker:
    """Drives one engine for as long as the other end of the wire is open."""

    def __init__(self, engine: Engine, wire: Wire) -> None:
        self._engine = engine
        self._wire = wire
        self._calls: dict[str, _Call] = {}  # by row id
        self._replies: list[tuple[int, Reply]] = []

    def run(self) -> None:
        """Answer calls until the server is gone."""
        try:
            self._wire.send(Ready())
            while True:
                self._turn()
        except WireClosed:
            return

    def _turn(self) -> None:
        for uid, message in self._waiting(block=self._engine.is_idle):
            self._take(uid, message)
        self._settle(self._step())
        if self._replies:  # one message a step, however many calls it answers
            self._wire.send(self._replies)
            self._replies = []
        self._engine.wait_for_loads(_LOAD_WAIT_SECONDS)

    def _waiting(self, *, block: bool) -> Iterator[tuple[int, Message]]:
        """Yield the messages that have come; if there is nothing to compute, sleep until the first."""
        if block:
            yield self._wire.receive()
        while self._wire.has_message():
            yield self._wire.receive()

    def _take(self, uid: int, message: Message) -> None:
        match message:
            case RunRows([]):
                self._replies.append((uid, RowsDone([])))
            case RunRows(rows):
                call = _Call(uid, {row.row_id: None for row in rows})
                self._calls.update((row.row_id, call) for row in rows)
                self._settle([refused for row in rows if (refused := self._submit(row))])
            case CancelRows(row_ids):
                for row_id in row_ids:
                    self._engine.cancel(row_id)
                    self._calls.pop(row_id, None)
            case ReadStats():
                self._replies.append((uid, self._engine.snapshot()))
            case HoldAdapter(digest, how):
                self._hold(digest, how)
                self._replies.append((uid, self._engine.snapshot()))

    def _hold(self, digest: str, how: str) -> None:
        if how == "warm":
            self._engine.warm(digest)
        else:
            self._engine.pin(digest, pinned=how == "pin")

    def _submit(self, row: Row) -> RowResult | None:
        """Submit a row; return its result if it is refused at once."""
        try:
            self._engine.submit(row)
        except HeadstockError as error:
            return RowResult(row.row_id, error=error)
        except Exception as error:  # a row that no check foresaw must not end the process
            logger.exception("A row could not be submitted")
            reason = f"The engine can't take this row: {type(error).__name__}: {error}"
            return RowResult(row.row_id, error=PredictionFailed(reason))
        return None

    def _step(self) -> Sequence[RowPart | RowResult]:
        """Step the engine; what should never happen ends the rows that are in it, not the process.

        A device that is lost ends the process: its calls are answered at once, and the next one starts afresh.
        """
        try:
            return self._engine.step()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            logger.exception("The engine failed; its rows are answered with an error")
            return self._engine.abort(error)

    def _settle(self, outcomes: Sequence[RowPart | RowResult]) -> None:
        parts: dict[int, list[RowPart]] = {}
        done: list[_Call] = []
        for outcome in outcomes:
            call = self._calls.get(outcome.row_id)
            if call is None:
                continue  # cancelled while it was in the last step
            if isinstance(outcome, RowPart):
                parts.setdefault(call.uid, []).append(outcome)
                continue
            del self._calls[outcome.row_id]
            call.results[outcome.row_id] = outcome
            if None not in call.results.values():
                done.append(call)
        self._replies += [(uid, RowParts(made)) for uid, made in parts.items()]
        self._replies += [(call.uid, _rows_done(call)) for call in done]


def _rows_done(call: _Call) -> RowsDone:
    return RowsDone([result for result in call.results.values() if result is not None])
