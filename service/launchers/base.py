"""What every launcher does: start a run, tell whether it goes on, stop it, and find it again after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.jobs.orders import Resources

GONE = -1000  # the exit code of a run that is not there any more, and nobody knows how it ended
NOT_STARTED = -1002  # of one that never had room
OUT_OF_MEMORY = -1001  # of one that was ended for taking more than its bound


@dataclass(frozen=True, slots=True)
class RunOrder:
    """A run to be started: ``python -m training`` with a config, a folder for what comes of it, and bounds.

    Args:
        folder: holds ``requested-run.json``; the run's ``--out``.
        home: folder of prepared backbones.
        reads: other paths that the run reads.
    """

    job: str
    attempt: int
    folder: Path
    home: Path
    config_name: str
    reads: tuple[Path, ...] = ()
    threads: int = 1
    memory_bytes: int | None = None
    gpus: int = 0
    workers: int = 1


class Launcher(Protocol):
    """One way to start runs. A handle is plain JSON: a worker that was started anew goes on by it."""

    def check(self, order: Resources) -> None:
        """Raise `InvalidRequest` if what is asked can't be met here, `EnvironmentProblem` if nothing can."""

    def start(self, run: RunOrder) -> dict[str, Any]:
        """Start a run, and return its handle; it writes ``log.txt`` into its folder."""

    def exit_code(self, handle: dict[str, Any]) -> int | None:
        """Return how a run ended, None while it goes on, `GONE` if nobody knows, `OUT_OF_MEMORY` at its bound,
        `NOT_STARTED` if it never had room."""

    def stop(self, handle: dict[str, Any], *, at_once: bool = False) -> None:
        """Ask a run to save a checkpoint and end; ``at_once`` ends it without."""

    def forget(self, handle: dict[str, Any]) -> None:
        """Remove what a launcher itself keeps of a run whose end has been told."""
