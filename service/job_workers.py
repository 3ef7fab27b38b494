"""The workers that a server starts for its jobs: processes of their own, started again when they die, ended with it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from service.lifeline import PARENT_VARIABLE
from service.runs import quiet_environment
from service.settings import Settings

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_PAUSE_SECONDS = 2.0  # before one that died is started again
_LOG_BYTES = 10 * 2**20
_END_SECONDS = 40.0  # a run's checkpoint included
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
    """Starts ``settings.job_workers`` of ``headstock worker``, and watches them from a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log_path = settings.home / "worker.log"
        self._processes: list[subprocess.Popen[bytes]] = []
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

    def _watch(self) -> None:
        while not self._ending.is_set():
            keep_short(self._log_path)
            with self._lock:
                self._processes = [p for p in self._processes if p.poll() is None]
                missing = self._settings.job_workers - len(self._processes)
                if not self._ending.is_set():
                    self._processes += [self._launch() for _ in range(missing)]
            self._ending.wait(_LOOK_SECONDS if not missing else _PAUSE_SECONDS)

    def _launch(self) -> subprocess.Popen[bytes]:
        values = {name: getattr(self._settings, name) for name in _SHARED}
        given = {f"HEADSTOCK_{name.upper()}": str(v) for name, v in values.items() if v is not None}
        with self._log_path.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "service.cli", "worker"],
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
