"""Runs as jobs of a Ray cluster: one process wherever there is room, or several that fit together."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from typing import Any

from adapters.errors import EnvironmentProblem, HeadstockError, Unavailable
from service.jobs.orders import Resources
from service.launchers.base import GONE, NOT_STARTED, RunOrder
from training.contract import ExitCode

logger = logging.getLogger(__name__)
_JOB = "headstock-job"  # in a Ray job's metadata
_SAVE_SECONDS = 30  # that a run gets to save a checkpoint when it is stopped
# For a Ray job of an earlier attempt to be gone: less than a worker's lease, or another one would wait here too.
_LEFTOVER_SECONDS = 10.0
_TIMEOUT_SECONDS = (
    5.0,
    30.0,
)  # to connect, and between two bytes: a lost head must not hold a worker for ever
_NEVER_BEGAN = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
_LOOK_SECONDS = 0.2


class RayLauncher:
    """Starts runs by Ray's Jobs API. All nodes see the workers' home at the same place, and have Headstock.

    Args:
        address: of the head's dashboard, such as ``http://head:8265``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._made: Any = None
        self._stopped: set[str] = (
            set()
        )  # what was asked to stop: Ray heeds it only once it has begun

    def check(self, order: Resources) -> None:
        """Nothing is known of the nodes here: a run that no node has room for waits for one."""

    def start(self, run: RunOrder) -> dict[str, Any]:
        client = self._client()
        with self._telling():
            _end_others(client, run.job)
            name = client.submit_job(
                submission_id=f"{run.job}-{run.attempt}",
                entrypoint=_entrypoint(run),
                runtime_env={"env_vars": _environment(run)},
                metadata={_JOB: run.job},
                **_room(run),
            )
        return {"name": name}

    def exit_code(self, handle: dict[str, Any]) -> int | None:
        try:
            with self._telling():
                info = _find(self._client(), handle["name"])
        except Unavailable as error:  # the run may well go on without who watches it
            logger.warning("%s", error.message)
            return None
        if info is None:
            return GONE
        if info.status == "PENDING" and handle["name"] in self._stopped:
            return ExitCode.PAUSED
        if not info.status.is_terminal():
            return None
        if info.status == "SUCCEEDED":
            return ExitCode.DONE
        if info.status == "STOPPED":
            return ExitCode.PAUSED
        if info.driver_exit_code is not None:
            return int(info.driver_exit_code)
        return NOT_STARTED if str(info.error_type or "").endswith(_NEVER_BEGAN) else GONE

    def stop(self, handle: dict[str, Any], *, at_once: bool = False) -> None:
        """Ray has one way: SIGTERM, and SIGKILL to what is still there half a minute later.

        What waits for room is stopped when it has got some, before it has begun anything.
        """
        self._stopped.add(handle["name"])
        with self._telling():
            client = self._client()
            if _find(client, handle["name"]) is not None:
                client.stop_job(handle["name"])

    def forget(self, handle: dict[str, Any]) -> None:
        self._stopped.discard(handle["name"])
        with self._telling():
            client = self._client()
            info = _find(client, handle["name"])
            if info is not None and info.status.is_terminal():
                client.delete_job(handle["name"])

    def _client(self) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise EnvironmentProblem(
                "Launcher 'ray' needs a package. Run: pip install 'headstock[ray]'"
            ) from error

        class Client(JobSubmissionClient):
            """Ray's, whose requests have no bound of their own."""

            def _do_request(self, *args: Any, **options: Any) -> Any:
                return super()._do_request(*args, **{"timeout": _TIMEOUT_SECONDS, **options})

        if self._made is None:
            with self._telling():
                self._made = Client(self._address)
        return self._made

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell what Ray refuses, or that it is not there, as our errors."""
        try:
            yield
        except HeadstockError:
            raise
        except (
            Exception
        ) as error:  # requests', Ray's own, and RuntimeError for what the head refuses
            raise Unavailable(f"Ray at '{self._address}': {str(error)[:300]}") from error


def _end_others(client: Any, job: str) -> None:
    """End what an earlier attempt left behind: a folder never has two runs."""
    stopped = set[str]()  # what waits for room ends when it gets some, before it has begun
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while left := [
        info.submission_id
        for info in client.list_jobs()
        if (info.metadata or {}).get(_JOB) == job
        and not info.status.is_terminal()
        and not (info.status == "PENDING" and info.submission_id in stopped)
    ]:
        if time.monotonic() > deadline:
            raise Unavailable(f"An earlier run of job '{job}' does not end. Look at '{left[0]}'.")
        for name in left:
            client.stop_job(name)
            stopped.add(name)
        time.sleep(_LOOK_SECONDS)


def _find(client: Any, name: str) -> Any:
    try:
        return client.get_job_info(name)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _entrypoint(run: RunOrder) -> str:
    """Return the shell's command; its log is a file of the run's folder, which outlives the node."""
    options = [str(run.folder / run.config_name), "--out", str(run.folder), "--home", str(run.home)]
    module = "training"
    if run.workers > 1:
        module = "training.gang"
        options += ["--workers", str(run.workers), "--threads", str(run.threads)]
        options += ["--gpus", str(run.gpus)]
        if run.memory_bytes is not None:
            options += ["--memory", str(run.memory_bytes)]
    log = shlex.quote(str(run.folder / "log.txt"))
    return f"exec python -m {module} {shlex.join(options)} >> {log} 2>&1"


def _environment(run: RunOrder) -> dict[str, str]:
    return {
        "HEADSTOCK_HOME": str(run.home),
        "OMP_NUM_THREADS": str(run.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_SAVE_SECONDS),
    }


def _room(run: RunOrder) -> dict[str, Any]:
    """Return what Ray keeps free for the command itself; several workers' room is asked for by it."""
    if run.workers > 1:
        return {}
    return {
        "entrypoint_num_cpus": run.threads,
        "entrypoint_num_gpus": run.gpus or None,
        "entrypoint_memory": run.memory_bytes,
    }
