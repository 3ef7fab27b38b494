"""Keeps the engine's process running: starts it, passes on what it says, and starts it again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from adapters.errors import Unavailable
from service.calls import EngineCalls, EngineLine
from service.wire import Ready, Wire, WireClosed, open_wire

logger = logging.getLogger(__name__)
MAX_DEATHS = 5
DEATHS_SECONDS = 60.0
MAX_FAILED_STARTS = 3
_END_SECONDS = 5.0


class Supervisor:
    """Owns the engine's process and the thread that reads from it.

    Args:
        launch: starts a process that serves the wire it is given.
        on_ready: called whenever a process can take calls.
        on_give_up: called once, with the reason, when there is no point in starting another.
    """

    def __init__(
        self,
        calls: EngineCalls,
        launch: Callable[[Wire], BaseProcess],
        on_ready: Callable[[], None],
        on_give_up: Callable[[str], None],
    ) -> None:
        self.is_stopping = False
        self._calls = calls
        self._launch = launch
        self._on_ready = on_ready
        self._on_give_up = on_give_up
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Start the process, and a thread that stays with it: a child ends with the thread that made it."""
        threading.Thread(target=self._keep_running, name="engine-supervisor", daemon=True).start()

    def stop(self) -> None:
        """End the process for good. What is in it is lost, so drain first."""
        self.is_stopping = True
        if self._process is not None:
            self._process.kill()

    def _keep_running(self) -> None:
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        has_served, num_failed = False, 0
        while not self.is_stopping:
            try:
                was_ready = self._run_process()
            except Exception:
                logger.exception("The engine's process could not be started")
                was_ready = False
            if self.is_stopping:
                return
            deaths.append(time.monotonic())
            has_served = has_served or was_ready
            num_failed = 0 if was_ready else num_failed + 1
            if reason := _why_give_up(has_served, num_failed, deaths):
                self._on_give_up(reason)
                return

    def _run_process(self) -> bool:
        """Start a process and serve it until it ends; return whether it ever was ready."""
        ours, theirs = open_wire()
        self._process = process = self._launch(theirs)
        theirs.close()  # with ours the only other end, the process's death closes the wire
        line = EngineLine(ours)
        was_ready = False
        try:
            while True:
                message = ours.receive()
                if isinstance(message, Ready):
                    was_ready = True
                    self._calls.connect(line)
                    self._on_ready()
                else:
                    self._calls.deliver(message)
        except WireClosed:
            pass
        finally:
            self._bury(process, line)
            ours.close()
        return was_ready

    def _bury(self, process: BaseProcess, line: EngineLine) -> None:
        self._calls.disconnect(
            line,
            Unavailable(
                "The engine's process ended while it worked on this. Try again after the time in Retry-After."
            ),
        )
        process.join(_END_SECONDS)
        if process.is_alive():  # it closed the wire, or sent what can't be read
            process.kill()
            process.join()
        line.close()
        if not self.is_stopping:
            logger.error("The engine's process ended (exit code %s).", process.exitcode)


def _why_give_up(has_served: bool, num_failed: int, deaths: deque[float]) -> str | None:
    if (
        not has_served
    ):  # what is wrong is likely a setting; what has served may start at the next try
        return "it ended before it was ready"
    if num_failed == MAX_FAILED_STARTS:
        return f"it failed to start {MAX_FAILED_STARTS} times in a row"
    if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < DEATHS_SECONDS:
        return f"it ended {MAX_DEATHS} times within {DEATHS_SECONDS:.0f} seconds"
    return None
