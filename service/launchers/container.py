"""Runs in containers, by the Docker API: bounded, without a network, on a root that can't be written."""

from __future__ import annotations

import contextlib
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters.errors import EnvironmentProblem, InvalidRequest, Unavailable
from service.jobs.orders import Resources
from service.launchers.base import GONE, OUT_OF_MEMORY, RunOrder
from service.launchers.isolated import (
    HOME,
    SCRATCH_BYTES,
    USER,
    arguments,
    entrypoint,
    environment,
)

logger = logging.getLogger(__name__)
_MOST_PROCESSES = 512
_WEIGHT = 64  # beside 1,024 of whoever says nothing: predictions on the same cores go first


class ContainerLauncher:
    """Starts runs in containers of one image; Docker is found as its own command finds it (``DOCKER_HOST``).

    The run's folder is mounted for writing at its own path, and what it reads for reading only; so a worker in a
    container itself needs its home at the same path as on the machine that runs Docker.

    Args:
        image: made from the Dockerfile's target ``train``.
    """

    def __init__(self, image: str) -> None:
        self._image = image

    def check(self, order: Resources) -> None:
        if order.workers > 1:
            raise InvalidRequest(
                f"resources.workers is '{order.workers}'; launcher 'container' runs one. Choose launcher 'ray'.",
                param="resources.workers",
            )
        with _telling():
            about = self._docker.info()
        bounds = {"threads": about["NCPU"], "memory_bytes": about["MemTotal"]}
        for name, most in bounds.items():
            asked = getattr(order, name)
            if asked is not None and asked > most:
                raise InvalidRequest(
                    f"resources.{name} is '{asked}'; the machine that runs containers has {most}.",
                    param=f"resources.{name}",
                )
        if order.gpus and "nvidia" not in about.get("Runtimes", {}):
            raise InvalidRequest(
                f"resources.gpus is '{order.gpus}', and Docker has no runtime for GPUs here. Leave it at 0.",
                param="resources.gpus",
            )

    def start(self, run: RunOrder) -> dict[str, Any]:
        mounts, user = _mounts(run), _give(run.folder)
        _check_readable([Path(path) for path, how in mounts.items() if how["mode"] == "ro"])
        name = f"headstock-{run.job}"
        with _telling(self._image):
            # One that an earlier attempt left behind: a folder never has two runs.
            self._remove(name)
            container = self._docker.containers.run(
                self._image,
                entrypoint=entrypoint(),
                command=arguments(run),
                name=name,
                detach=True,
                labels={"headstock.job": run.job, "headstock.attempt": str(run.attempt)},
                user=user,
                environment=environment(run.threads),
                volumes=mounts,
                tmpfs={place: _scratch() for place in (HOME, "/tmp")},
                **self._limits(run),
            )
        return {"container": container.id}

    def exit_code(self, handle: dict[str, Any]) -> int | None:
        from docker.errors import DockerException, NotFound

        try:
            state = self._docker.containers.get(handle["container"]).attrs["State"]
        except NotFound:
            return GONE
        except (DockerException, OSError, Unavailable) as error:
            # Requests' errors are OSErrors. The run may well go on without who watches it.
            logger.warning("Docker does not answer: %s", error)
            return None
        if state["Status"] not in ("exited", "dead"):
            return None
        return OUT_OF_MEMORY if state.get("OOMKilled") else int(state["ExitCode"])

    def stop(self, handle: dict[str, Any], *, at_once: bool = False) -> None:
        from docker.errors import APIError, NotFound

        with _telling():
            if at_once:
                self._remove(handle["container"])
                return
            with contextlib.suppress(NotFound):
                container = self._docker.containers.get(handle["container"])
                with contextlib.suppress(APIError):  # it ended meanwhile
                    container.kill(signal="SIGTERM")

    def forget(self, handle: dict[str, Any]) -> None:
        with _telling():
            self._remove(handle["container"])

    def _remove(self, container: str) -> None:
        from docker.errors import NotFound

        with contextlib.suppress(NotFound):
            self._docker.containers.get(container).remove(force=True, v=True)

    @staticmethod
    def _limits(run: RunOrder) -> dict[str, Any]:
        """Return what a run may take and do, in the terms of ``docker run``."""
        limits: dict[str, Any] = {
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "pids_limit": _MOST_PROCESSES,
            "nano_cpus": run.threads * 10**9,
            "cpu_shares": _WEIGHT,
            "init": True,  # process 1 does not hear SIGTERM by itself
        }
        if run.memory_bytes is not None:
            limits |= {"mem_limit": run.memory_bytes, "memswap_limit": run.memory_bytes}
        if run.gpus:
            from docker.types import DeviceRequest

            limits["device_requests"] = [DeviceRequest(count=run.gpus, capabilities=[["gpu"]])]
        return limits

    @cached_property
    def _docker(self) -> Any:
        try:
            import docker
        except ImportError as error:
            raise EnvironmentProblem(
                "Launcher 'container' needs a package. Run: pip install 'headstock[container]'"
            ) from error
        try:
            return docker.from_env()
        except docker.errors.DockerException as error:
            raise _no_docker(error) from error


@contextlib.contextmanager
def _telling(image: str | None = None) -> Any:
    """Tell what Docker refuses as our errors."""
    from docker.errors import DockerException, ImageNotFound

    try:
        yield
    except ImageNotFound as error:
        raise EnvironmentProblem(
            f"There is no image '{image}' for runs. Make it with 'docker build --target train -t {image} .', or set "
            "HEADSTOCK_CONTAINER_IMAGE to one there is."
        ) from error
    except (DockerException, OSError) as error:
        raise _no_docker(error) from error


def _no_docker(error: Exception) -> Unavailable:
    return Unavailable(
        f"Docker can't be used: {error}. Start it, let this user at its socket, or set DOCKER_HOST."
    )


def _give(folder: Path) -> str:
    """Return the user and group of a run, who owns its folder; never root."""
    if os.geteuid() != 0:
        return f"{os.geteuid()}:{os.getegid()}"
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    return f"{USER}:{USER}"


def _check_readable(places: list[Path]) -> None:
    """Raise `EnvironmentProblem` if the user that stands in for root can't read what a run reads."""
    if os.geteuid() != 0:
        return
    for place in places:
        for path in (place, *place.rglob("*")):
            wanted = 0o005 if path.is_dir() else 0o004
            if path.stat().st_mode & wanted != wanted:
                raise EnvironmentProblem(
                    f"'{path}' can be read by its owner alone, and runs in containers are user {USER}. "
                    f"Run: chmod -R o+rX '{place}'"
                )


def _mounts(run: RunOrder) -> dict[str, dict[str, str]]:
    prepared = run.home / "backbones"
    prepared.mkdir(exist_ok=True)
    return {
        **{str(path): {"bind": str(path), "mode": "ro"} for path in run.reads},
        str(prepared): {"bind": f"{HOME}/backbones", "mode": "ro"},
        str(run.folder): {"bind": str(run.folder), "mode": "rw"},
    }


def _scratch() -> str:
    return f"rw,exec,nosuid,nodev,mode=1777,size={SCRATCH_BYTES}"  # kernels are compiled, then run
