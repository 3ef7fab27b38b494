"""A system under test in a process of its own, told what to do over a pipe; idle while another is timed."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from benchmarks.environments import OURS, Environment, PeerMissing, prepare_environment
from benchmarks.peers.wire import Load, Outcome, Work

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class System:
    """Something that is measured.

    Args:
        name: what the report calls it.
        worker: module under ``benchmarks.peers``.
        options: what its worker is told beside the common `Load`.
    """

    name: str
    worker: str
    environment: Environment = OURS
    options: dict[str, int | str] = field(default_factory=dict)


class Worker:
    """One running system.

    Args:
        home: where peers' environments are kept.
        log: file that what it prints goes to.

    Raises:
        PeerMissing: it can't be installed.
    """

    def __init__(self, system: System, home: Path, log: Path) -> None:
        self.system = system
        self._log_path = log
        python = prepare_environment(system.environment, home)
        path = ROOT if system.environment is OURS else _code_folder(home)
        self._log: IO[str] = log.open("w")
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{system.worker}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=path,
            env=_environment(path),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def load(self, order: Load) -> None:
        self._ask("load", order)

    def run(self, work: Work) -> Outcome:
        return Outcome(**self._ask("run", work))

    def pss_bytes(self) -> int:
        """Return what the process and its children hold of memory, shared pages counted in part."""
        return tree_pss_bytes(self._process.pid)

    def pin(self, cores: set[int]) -> None:
        """Keep the process to some cores."""
        pin(self._process.pid, cores)

    def close(self) -> None:
        """End the process; its own stdin is closed, so that it ends by itself if it can."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it may have ended before it read what was sent
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _ask(self, command: str, body: Load | Work) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message = json.dumps({"command": command, "body": asdict(body)})
        with suppress(BrokenPipeError):  # the empty line below tells
            self._process.stdin.write(message + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerMissing(f"its process ended; see {self._log_path}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerMissing(f"{reply['error'][:200]}; see {self._log_path}")
        return reply["ok"]


def pin(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process to some cores; an affinity belongs to one thread, not to a process."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def tree_pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all its descendants."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def _environment(path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(path),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _code_folder(home: Path) -> Path:
    """Return a folder that holds this package alone, so that a peer sees none of our environment's packages."""
    folder = home / "bench" / "code"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "benchmarks"
    target = Path(__file__).parent
    if not (link.is_symlink() and link.resolve() == target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return folder
