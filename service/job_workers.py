"""The workers that a server starts when there is work: processes of their own, started again when they die."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from adapters.errors import Unavailable
from service.lifeline import PARENT_VARIABLE
from service.runs import quiet_environment
from service.settings import Settings

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_PAUSE_SECONDS = 2.0  # before one that died is started again
_LOG_BYTES = 10 * 2**20
_END_SECONDS = 40.0  # a run's checkpoint included
_IDLE_SECONDS = 60.0  # then a worker ends, and gives its memory back
_ROUND_SECONDS = 3600.0  # without a job one is started all the same, to remove what is old
_COMMAND = (sys.executable, "-m", "service.cli", "worker")
# What the workers must have as the server has it; all else they find in the environment.
_SHARED = (
    "home",
    "database_url",
    "blob_url",
    "container_image",
    "kubernetes_claim",
    "kubernetes_namespace",
    "run_threads",
    "job_timeout_seconds",
    "job_days",
    "file_days",
    "backbone",
)


class JobWorkers:
    """Starts ``settings.job_workers`` of ``headstock worker`` when there is work, and watches them from a thread.

    Args:
        has_work: tells whether a job waits or is run, by whomever.
    """

    def __init__(self, settings: Settings, has_work: Callable[[], bool]) -> None:
        self._settings = settings
        self._has_work = has_work
        self._log_path = settings.home / "worker.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._there_at = time.monotonic()
        self._called = threading.Event()
        self._ending = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        if not self._settings.job_workers:
            return
        # A child is tied to the thread that started it: this one lives as long as the server.
        threading.Thread(target=self._watch, name="job-workers", daemon=True).start()

    def stop(self) -> None:
        """End the workers; the runs that go on save checkpoints first."""
        self._ending.set()
        with self._lock:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def call(self) -> None:
        """Have workers there for an order that is about to be taken: they start while it is checked."""
        self._called.set()

    def _watch(self) -> None:
        is_called = False
        while not self._ending.is_set():
            keep_short(self._log_path)
            missing = self._missing(is_called)
            with self._lock:
                if not self._ending.is_set():
                    self._processes += [self._launch() for _ in range(missing)]
            is_called = self._called.wait(_LOOK_SECONDS if not missing else _PAUSE_SECONDS)
            self._called.clear()

    def _missing(self, is_called: bool) -> int:
        """Return how many workers to start: none if there is nothing for them to do."""
        with self._lock:
            self._processes = [p for p in self._processes if p.poll() is None]
            missing = self._settings.job_workers - len(self._processes)
        now = time.monotonic()
        if self._processes:
            self._there_at = now  # they remove what is old themselves
        is_due = now - self._there_at > _ROUND_SECONDS
        return missing if missing and (is_called or is_due or self._is_wanted()) else 0

    def _is_wanted(self) -> bool:
        try:
            return self._has_work()
        except Unavailable:  # workers could do nothing either
            return False
        except Exception:
            logger.exception("Whether there are jobs could not be told")
            return False

    def _launch(self) -> subprocess.Popen[bytes]:
        values = {name: getattr(self._settings, name) for name in _SHARED}
        given = {f"HEADSTOCK_{name.upper()}": str(v) for name, v in values.items() if v is not None}
        with self._log_path.open("a") as log:
            return subprocess.Popen(
                [*_COMMAND, "--idle-seconds", str(_IDLE_SECONDS)],
                env=quiet_environment({**given, PARENT_VARIABLE: str(os.getpid())}),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the server's to hand on
            )


def keep_short(path: Path, max_bytes: int = _LOG_BYTES) -> None:
    """Put what a log holds aside if it is long, in the place of what was put there before; its writers go on."""
    if path.is_file() and path.stat().st_size > max_bytes:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)  # they append: what they write between the two is lost
