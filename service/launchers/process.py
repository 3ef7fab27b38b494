"""Runs as processes of this machine: at low priority, with threads of their own, outliving the worker they are of."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest, Unavailable
from adapters.storage import telling_store
from service.jobs.orders import Resources
from service.launchers.base import GONE, RunOrder
from service.machine import has_gpu, machine_name
from service.runs import quiet_environment

_NICENESS = 15
_EXIT_NAME, _LOCK_NAME = "exit.json", "run.lock"
_LOOK_SECONDS = 0.05
_LEFTOVER_SECONDS = 30.0  # for one that was killed to be gone
_EXIT_ROOM = 64  # bytes: kept for how a run ends, for it may end because the disk is full
# The run's own parent: writes how it ended, so that a worker started later can tell, into room that was kept for it. It
# and the run hold the lock, so that a folder never has two runs. Linux weighs sessions against each other (autogroup),
# so that a nice process in a session of its own would take half of the machine from predictions all the same: the
# session must be nice.
_SHEPHERD = """
import contextlib, json, os, signal, subprocess, sys
lock, out, *command = sys.argv[1:]
os.pwrite(int(lock), str(os.getpid()).encode(), 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
    file.write("19")
heed = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
code = subprocess.Popen(command, preexec_fn=heed, pass_fds=[int(lock)]).wait()
with open(out, "r+") as file:
    json.dump({"code": code}, file)
"""


class ProcessLauncher:
    """Starts runs in sessions of their own: a signal to the worker's group does not reach them."""

    def check(self, order: Resources) -> None:
        if order.gpus and not has_gpu():
            raise InvalidRequest(
                f"resources.gpus is '{order.gpus}', and this machine has none. Leave it at 0.",
                param="resources.gpus",
            )
        cores = len(os.sched_getaffinity(0))
        if order.threads is not None and order.threads > cores:
            raise InvalidRequest(
                f"resources.threads is '{order.threads}'; this machine has {cores} cores.",
                param="resources.threads",
            )
        if order.memory_bytes is not None:
            raise InvalidRequest(
                f"resources.memory_bytes is '{order.memory_bytes}', and a process has no such bound. Leave it out, or "
                "choose launcher 'container'.",
                param="resources.memory_bytes",
            )
        if order.workers > 1:
            raise InvalidRequest(
                f"resources.workers is '{order.workers}'; launcher 'process' runs one. Choose launcher 'ray'.",
                param="resources.workers",
            )

    def start(self, run: RunOrder) -> dict[str, Any]:
        lock = _lock(run.folder / _LOCK_NAME)
        try:
            with telling_store(str(run.folder)):
                (run.folder / _EXIT_NAME).write_text(" " * _EXIT_ROOM)
            command = [sys.executable, "-c", _SHEPHERD, str(lock), str(run.folder / _EXIT_NAME)]
            command += [sys.executable, "-m", "training", str(run.folder / run.config_name)]
            command += ["--out", str(run.folder), "--home", str(run.home)]
            with (run.folder / "log.txt").open("a") as log:
                process = subprocess.Popen(
                    ["nice", "-n", str(_NICENESS), *command],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=quiet_environment({"OMP_NUM_THREADS": str(run.threads)}),
                    start_new_session=True,
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)
        since = _started(process.pid)
        place = {"machine": machine_name(), "folder": str(run.folder)}
        return {**place, "pid": process.pid, "since": since}

    def exit_code(self, handle: dict[str, Any]) -> int | None:
        if handle.get("machine") != machine_name():
            return GONE
        _reap(handle["pid"])
        is_alive = self._is_alive(
            handle
        )  # before the file is looked for: it may be written in between
        with contextlib.suppress(FileNotFoundError):
            if told := (Path(handle["folder"]) / _EXIT_NAME).read_text().strip():
                return int(json.loads(told)["code"])
        return None if is_alive else GONE

    def stop(self, handle: dict[str, Any], *, at_once: bool = False) -> None:
        if not self._is_alive(handle):
            return
        with contextlib.suppress(ProcessLookupError):
            # The group: the shepherd, which ignores SIGTERM, and the run with all it started.
            os.killpg(handle["pid"], signal.SIGKILL if at_once else signal.SIGTERM)

    def forget(self, handle: dict[str, Any]) -> None:
        """Nothing is kept but files in the run's own folder."""

    @staticmethod
    def _is_alive(handle: dict[str, Any]) -> bool:
        """Tell whether the very process is there: a number is given to another one some day."""
        return handle["since"] is not None and _started(handle["pid"]) == handle["since"]


def _lock(path: Path) -> int:
    """Return a lock that no other run holds; one that an earlier attempt left behind is ended first.

    Raises:
        Unavailable: it can't be ended.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _end_group(os.pread(lock, 32, 0))
        else:
            os.ftruncate(lock, 0)
            return lock
        if time.monotonic() > deadline:
            os.close(lock)
            raise Unavailable(f"An earlier run in '{path.parent}' does not end. Look at its log.")
        time.sleep(_LOOK_SECONDS)


def _end_group(leader: bytes) -> None:
    if leader.isdigit():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(leader), signal.SIGKILL)


def _reap(pid: int) -> None:
    """Take note of a child's end, or it stays a zombie; others' children are not ours to wait for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
