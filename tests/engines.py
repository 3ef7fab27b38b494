"""An engine without a model, and the whole way of a call to it and back inside one process."""

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from adapters.errors import DeadlineExceeded, InvalidRequest
from adapters.runtime.rows import RowPart, RowResult
from adapters.runtime.stats import EngineStats
from adapters.tasks.base import RowOutput
from service.calls import EngineCalls
from service.supervisor import Supervisor
from service.wire import Wire
from service.worker import Worker


class EchoEngine:
    """Gives each row its own prompt back, a token a step; steps only while ``go`` is set.

    A prompt that begins with 0 is refused, with 1 fails the whole step, with 2 fails after a token. A streaming row
    that begins with 3 hands nothing over before its end; with 4 the device is lost. ``is_deaf`` to deadlines, if
    told so.
    """

    def __init__(self, *, go=True, is_deaf=False):
        self.stats = EngineStats()
        self.go = threading.Event()
        self.is_deaf = is_deaf
        self.rows = {}
        self.pinned = set()
        if go:
            self.go.set()

    @property
    def num_rows(self):
        return len(self.rows)

    @property
    def is_idle(self):
        return not self.rows

    def snapshot(self):
        return replace(self.stats, waiting_rows=self.num_rows)

    def submit(self, row):
        if row.token_ids[0] == 0:
            raise InvalidRequest("refused")
        self.rows[row.row_id] = (row, [])

    def cancel(self, row_id):
        self.rows.pop(row_id, None)

    def warm(self, digest):
        pass

    def pin(self, digest, *, pinned):
        (self.pinned.add if pinned else self.pinned.discard)(digest)

    def abort(self, error):
        results = [RowResult(row_id, error=InvalidRequest(str(error))) for row_id in self.rows]
        self.rows.clear()
        return results

    def wait_for_loads(self, timeout_seconds=None):
        pass

    def step(self):
        if not self.rows or not self.go.wait(0.005):
            return []
        self.stats.steps += 1
        outcomes = []
        for row, made in list(self.rows.values()):
            if row.token_ids[0] == 1:
                raise ValueError("the step failed")
            if row.token_ids[0] == 4:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            outcomes += self._advance(row, made)
        return outcomes

    def _advance(self, row, made):
        made.append(row.token_ids[len(made)])
        streams = row.generation and row.generation.stream and row.token_ids[0] != 3
        part = [RowPart(row.row_id, (made[-1],))] if streams else []
        error = None
        if row.token_ids[0] == 2:
            error = InvalidRequest("failed on the way")
        elif row.deadline and row.deadline < time.monotonic() and not self.is_deaf:
            error = DeadlineExceeded("too late")
        elif len(made) < len(row.token_ids):
            return part
        del self.rows[row.row_id]
        output = None if error else RowOutput(token_ids=tuple(made), finish_reason="stop")
        return [*part, RowResult(row.row_id, output, error)]


class ThreadProcess:
    """What `multiprocessing` gives for a process, as a thread that drives an engine over the wire."""

    exitcode = -9

    def __init__(self, wire, engine):
        # The supervisor closes the end it gave away, as it must with a real process.
        self._connection = Connection(os.dup(wire._connection.fileno()))
        self._thread = threading.Thread(target=self._run, args=(engine,), daemon=True)
        self._thread.start()

    def _run(self, engine):
        if engine is not None:
            with suppress(torch.AcceleratorError):  # it ends the process
                Worker(engine, Wire(self._connection)).run()
        self.kill()

    def kill(self):
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads, as closing would not

    def join(self, timeout=None):
        self._thread.join(timeout)

    def is_alive(self):
        return self._thread.is_alive()


class Household:
    """Calls, a supervisor, and the engines it starts, in the order they are given; None is one that fails to start."""

    def __init__(self, *engines, max_calls=8, max_tokens=1000):
        self.calls = EngineCalls(max_calls, max_tokens)
        self.engines = list(engines)
        self.processes = []
        self.num_ready = 0
        self.gave_up = []
        self.supervisor = Supervisor(self.calls, self._launch, self._ready, self.gave_up.append)
        self.supervisor.start()

    def _launch(self, wire):
        engine = self.engines[len(self.processes)]
        self.processes.append(ThreadProcess(wire, engine))
        return self.processes[-1]

    def _ready(self):
        self.num_ready += 1

    async def run(self, rows):
        """Return the results of a call of one round."""
        with self.calls.open() as call:
            return await call.run(rows)

    def close(self):
        self.supervisor.stop()
