"""``python -m training run.json --out FOLDER``: one run, started by a person, a worker or a container alike."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from pydantic import ValidationError

from adapters.errors import (
    EnvironmentProblem,
    HeadstockError,
    InvalidRequest,
    PeerLost,
    RunFailed,
    RunPaused,
)
from adapters.home import default_home
from adapters.imports import many_imports
from adapters.runtime.onednn import bound_caches
from adapters.storage import is_full
from adapters.validation import first_problem
from training.contract import (
    CHECKPOINT_NAME,
    EVENTS_NAME,
    RESULT_NAME,
    EventKind,
    ExitCode,
    RunConfig,
    RunResult,
)
from training.events import EventLog
from training.inputs import read_inputs
from training.report import write_report
from training.run_folder import begins_anew, prepare_folder, write_whole
from training.tracking import TENSORBOARD_NAME, mlflow_tracker, tensorboard_tracker


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("config", type=Path, help="the run's JSON file")
    parser.add_argument("--out", type=Path, required=True, help="folder for events and bundle")
    parser.add_argument("--home", type=Path, default=default_home(), help="folder of backbones")
    options = parser.parse_args(arguments)
    # peft imports bitsandbytes, which warns of an optional package that a user can do nothing with.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return _begin(options.config, options.out, options.home)
    except Exception as error:
        if not is_full(error):
            raise
        with contextlib.suppress(OSError):  # neither an event nor, often, a line finds room
            print(f"Error: no room left for the run's files: {error}", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _begin(path: Path, out: Path, home: Path) -> int:
    try:
        config = _read_config(path)
        log = _open_log(out, config)
    except HeadstockError as error:
        if is_full(error):
            raise
        print(f"Error: {error.message}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    return _execute(config, out, home, log)


def _read_config(path: Path) -> RunConfig:
    try:
        return RunConfig.model_validate_json(path.read_text())
    except OSError as error:
        raise InvalidRequest(f"Can't read '{path}': {error.strerror}.") from error
    except ValidationError as error:
        raise InvalidRequest(f"'{path.name}': {first_problem(error)[0]}") from error


def _open_log(out: Path, config: RunConfig) -> EventLog:
    try:
        if not _only_helps():
            prepare_folder(out, config)
    except OSError as error:
        raise EnvironmentProblem(f"Can't write to '{out}': {error.strerror}.") from error
    if _only_helps():
        return EventLog(Path(os.devnull))
    trackers = [tensorboard_tracker(out / TENSORBOARD_NAME), mlflow_tracker(config, out)]
    return EventLog(out / EVENTS_NAME, [tracker for tracker in trackers if tracker is not None])


def _only_helps() -> bool:
    """Tell whether another process of the same fit, as `accelerate launch` starts them, writes what comes of it."""
    return os.environ.get("RANK", "0") != "0"


def _execute(config: RunConfig, out: Path, home: Path, log: EventLog) -> int:
    is_new = begins_anew(out)
    log.emit(EventKind.STARTED, f"{config.action} {config.task}", pid=os.getpid(), is_new=is_new)
    if config.action != "estimate":  # which has nothing to save, and ends at once
        signal.signal(signal.SIGTERM, _pause)
    try:
        result = _run(config, out, home, log)
    except RunPaused as error:
        log.emit(EventKind.PAUSED, error.message)
        return ExitCode.PAUSED
    except PeerLost as error:
        log.emit(EventKind.WARNING, error.message)
        print(f"Error: {error.message}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except HeadstockError as error:
        if is_full(error):
            raise
        log.emit(EventKind.FAILED, error.message, code=error.code, param=error.param)
        print(f"Error: {error.message}", file=sys.stderr)
        return ExitCode.FAILED if isinstance(error, RunFailed) else ExitCode.BAD_INPUT
    except Exception as error:
        if is_full(error):  # an event would find no room either
            raise
        log.emit(EventKind.FAILED, f"{type(error).__name__}: {error}", code="internal")
        raise
    if result is None:
        return ExitCode.DONE
    # What is left takes a moment, and the checkpoint goes: a run that is done must not be begun again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_whole(out / RESULT_NAME, result.model_dump_json(indent=2) + "\n")
    if config.action == "train":
        (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    if config.action != "estimate":
        _report(out, config, result, log)
    if result.problems and config.must_learn:
        log.emit(EventKind.FAILED, result.problems[0], code="did_not_learn")
        print(f"Error: {result.problems[0]}", file=sys.stderr)
        return ExitCode.FAILED
    for problem in result.problems:
        log.emit(EventKind.WARNING, problem)
    log.emit(EventKind.FINISHED, "Finished", result=result.model_dump())
    return ExitCode.DONE


def _report(out: Path, config: RunConfig, result: RunResult, log: EventLog) -> None:
    try:
        write_report(out, config, result)
    except (
        Exception
    ) as error:  # the bundle is made and tested; a picture that fails is no reason to lose it
        log.emit(EventKind.WARNING, f"No report was written: {type(error).__name__}: {error}")


def _pause(*_: object) -> None:
    raise RunPaused(
        "The run was stopped before it had fitted anything; the same command begins it again."
    )


def _run(config: RunConfig, out: Path, home: Path, log: EventLog) -> RunResult | None:
    _silence_libraries()
    bound_caches()
    with log.stage("data", "Reading the data"):
        inputs = read_inputs(config, log, out / CHECKPOINT_NAME)
    try:
        with many_imports():
            from training.run import Run  # torch, transformers and peft load only now
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"'{error.name}' is not installed, which training needs. Run: pip install 'headstock[train]'"
        ) from error
    run = Run(config, inputs, out, home, log)
    if config.action != "estimate":
        signal.signal(signal.SIGTERM, run.pause)
    return run.execute()


def _silence_libraries() -> None:
    """Keep bars and notes of the libraries out of a run's log; our own events tell how far it is."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    code = main()
    gc.freeze()  # the process ends: nobody needs what it gives back piece by piece, which takes a second
    sys.exit(code)
