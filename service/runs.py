"""Starts training runs as commands and follows their events; nothing of the trainer is imported here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from adapters.errors import InvalidData, RunFailed, RunPaused
from service.lifeline import PARENT_VARIABLE
from service.settings import make_folder
from training.contract import (
    CONFIG_NAME,
    EVENTS_NAME,
    PAGE_NAME,
    RESULT_NAME,
    Event,
    EventKind,
    ExitCode,
    RunConfig,
    RunResult,
)

_POLL_SECONDS = 0.2


def execute_run(
    config: RunConfig,
    out: Path,
    home: Path,
    on_event: Callable[[Event], None],
    *,
    niceness: int = 0,
    threads: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> RunResult:
    """Run a config as ``python -m training`` in a process of its own, and return its result.

    Where Linux runs, the run is stopped when this process dies, however it does.

    Args:
        check: called several times a second; the run is stopped if it raises.
        niceness: added to this process's own.
        threads: of the CPU; None leaves it to torch.

    Raises:
        InvalidData: the run found the config or the data at fault; the message is the run's own.
        RunFailed: the run died; the message tells where its log is.
        RunPaused: it was stopped by SIGTERM.
    """
    make_folder(out)
    request = out / f"requested-{CONFIG_NAME}"
    request.write_text(config.model_dump_json(indent=2) + "\n")
    command = [
        *("nice", "-n", str(niceness)),
        *(sys.executable, "-m", "service.lifeline"),
        *(sys.executable, "-m", "training"),
        str(request),
        "--out",
        str(out),
        "--home",
        str(home),
    ]
    log_path = out / "log.txt"
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    environment = quiet_environment({**given, PARENT_VARIABLE: str(os.getpid())})
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            failure = ""
            for event in follow(out / EVENTS_NAME, process, check):
                on_event(event)
                failure = event.message if event.kind == EventKind.FAILED else failure
        except BaseException:
            process.terminate()  # the run saves a checkpoint and ends
            process.wait()
            raise
    if process.returncode == ExitCode.PAUSED:
        raise RunPaused("The run was stopped; the same command goes on from its checkpoint.")
    if process.returncode == ExitCode.BAD_INPUT:
        raise InvalidData(failure or last_line(log_path))
    if process.returncode != ExitCode.DONE:
        report = f", report: {out / PAGE_NAME}" if (out / PAGE_NAME).is_file() else ""
        said = failure or last_line(log_path)
        raise RunFailed(f"The run failed: {said} (log: {log_path}{report})")
    return RunResult.model_validate_json((out / RESULT_NAME).read_text())


def follow(
    path: Path, process: subprocess.Popen[bytes], check: Callable[[], None]
) -> Iterator[Event]:
    """Yield the events that a process appends to a file from now on, until it ends; ``check`` before each look."""
    position = path.stat().st_size if path.is_file() else 0
    while True:
        check()
        ended = process.poll() is not None
        if path.is_file():
            with path.open() as file:
                file.seek(position)
                for line in file:
                    if not line.endswith("\n"):
                        break  # half a line: the rest comes with the next look
                    position += len(line.encode())
                    yield Event.model_validate_json(line)
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def quiet_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for our own commands: no Hub look-ups unless asked for, no bars in logs."""
    defaults = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**defaults, "PYTHONWARNINGS": "ignore", **os.environ, **(extra or {})}


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


class RunProgress:
    """Shows a run's events: a bar for the stage it is in, with an ETA once the stage counts, and warnings as lines."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._stage = self._bars.add_task("starting", total=None, note="")

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        if event.kind == EventKind.STAGE:
            self._say(event.message)
            # No total yet: the bar moves to and fro until the stage tells how far it is.
            self._bars.reset(self._stage, total=None, description=event.data["stage"], note="")
        elif event.kind == EventKind.WARNING:
            self._say(("note:", "yellow"), f" {event.message}")
        elif event.kind == EventKind.METRICS and event.data["of"] == "fit":
            found = "  ".join(f"{k} {v:.4f}" for k, v in event.data["metrics"].items())
            self._say(f"validation after step {event.data['step']}: {found}")
        elif event.kind == EventKind.PROGRESS:
            loss, pace = event.data.get("loss"), event.data.get("rows_per_second")
            note = f"loss {loss:.3f}, {pace:g} rows/s" if isinstance(loss, float) else ""
            total, done = event.data["total"], event.data["done"]
            self._bars.update(self._stage, total=total, completed=done, note=note)

    def _say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line as it is: labels of the data stand in it, which may look like markup."""
        self._console.print(Text.assemble(f"  {self._title}: ", *parts), soft_wrap=True)
