"""Runs as Jobs of Kubernetes: one pod each, on whatever node has room, over a volume that the workers share."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
from training.contract import ExitCode

logger = logging.getLogger(__name__)
_LABEL = "headstock.dev/job"
_KEPT_SECONDS = 7 * 86400  # of an ended Job that nobody asked about
_LEFTOVER_SECONDS = 10.0  # for pods of an earlier attempt to be gone; less than a worker's lease
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where runs go.

    Args:
        image: made from the Dockerfile's target ``train``.
        claim: name of the PersistentVolumeClaim whose root is the workers' home.
    """

    image: str
    claim: str
    namespace: str


class KubernetesLauncher:
    """Starts runs as Jobs; the API server is found as kubectl finds it, or from within a pod."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self, order: Resources) -> None:
        """Nothing is known of the nodes here: a pod that no node has room for waits, as its job's events tell."""
        if order.workers > 1:
            raise InvalidRequest(
                f"resources.workers is '{order.workers}'; launcher 'kubernetes' runs one. Choose launcher 'ray'.",
                param="resources.workers",
            )

    def start(self, run: RunOrder) -> dict[str, Any]:
        manifest = job_manifest(run, self._cluster)
        with _telling():
            self._end_others(run.job)
            self._batch.create_namespaced_job(self._cluster.namespace, manifest)
        return {"namespace": self._cluster.namespace, "name": manifest["metadata"]["name"]}

    def exit_code(self, handle: dict[str, Any]) -> int | None:
        try:
            with _telling():
                job = self._find(handle)
                if job is None:
                    return GONE
                pods = self._pods(f"job-name={handle['name']}")
        except Unavailable as error:  # the run may well go on without who watches it
            logger.warning("%s", error.message)
            return None
        if any(pod.status.phase in ("Pending", "Running", "Unknown") for pod in pods):
            return None
        if pods:
            return _exit_code_of(pods[-1])
        if job.spec.suspend:  # its pod was told to stop, and is gone
            return ExitCode.PAUSED
        has_ended = any(
            c.type == "Failed" and c.status == "True" for c in job.status.conditions or []
        )
        return GONE if has_ended else None

    def stop(self, handle: dict[str, Any], *, at_once: bool = False) -> None:
        from kubernetes.client import ApiException

        with _telling():
            if at_once:
                self._delete(handle)
                return
            try:
                # Its pod gets SIGTERM and is gone then; the Job stays, to be asked about.
                self._batch.patch_namespaced_job(
                    handle["name"], handle["namespace"], {"spec": {"suspend": True}}
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def forget(self, handle: dict[str, Any]) -> None:
        with _telling():
            self._delete(handle)

    def _end_others(self, job: str) -> None:
        """End what an earlier attempt left behind: a folder never has two runs."""
        selector = f"{_LABEL}={job}"
        found = self._batch.list_namespaced_job(self._cluster.namespace, label_selector=selector)
        for each in found.items:
            name = each.metadata.name
            self._delete({"namespace": self._cluster.namespace, "name": name})
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        while self._pods(selector):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"An earlier pod of job '{job}' does not end. Look at it with kubectl."
                )
            time.sleep(_LOOK_SECONDS)

    def _find(self, handle: dict[str, Any]) -> Any:
        from kubernetes.client import ApiException

        try:
            return self._batch.read_namespaced_job(handle["name"], handle["namespace"])
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _delete(self, handle: dict[str, Any]) -> None:
        from kubernetes.client import ApiException

        try:
            self._batch.delete_namespaced_job(
                handle["name"],
                handle["namespace"],
                propagation_policy="Background",
                grace_period_seconds=0,
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _pods(self, selector: str) -> list[Any]:
        found = self._core.list_namespaced_pod(self._cluster.namespace, label_selector=selector)
        return sorted(found.items, key=lambda pod: pod.metadata.creation_timestamp)

    @cached_property
    def _batch(self) -> Any:
        return self._client.BatchV1Api()

    @cached_property
    def _core(self) -> Any:
        return self._client.CoreV1Api()

    @cached_property
    def _client(self) -> Any:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise EnvironmentProblem(
                "Launcher 'kubernetes' needs a package. Run: pip install 'headstock[kubernetes]'"
            ) from error
        try:
            config.load_config()
        except config.ConfigException as error:
            raise EnvironmentProblem(
                f"No Kubernetes is configured: {error}. Set KUBECONFIG, or run in a pod."
            ) from error
        return client


def job_manifest(run: RunOrder, cluster: Cluster) -> dict[str, Any]:
    """Return the Job of a run, as ``kubectl create`` takes it.

    Raises:
        EnvironmentProblem: it reads something outside home, which the pod can't see.
    """
    labels = {_LABEL: run.job, "app": "headstock-run"}
    user = os.geteuid() or USER
    scratch = {"emptyDir": {"medium": "Memory", "sizeLimit": str(SCRATCH_BYTES)}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{run.job}-{run.attempt}",
            "labels": labels,
        },
        "spec": {
            "backoffLimit": 0,  # attempts are the queue's to count
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "shareProcessNamespace": True,  # process 1 would not hear SIGTERM by itself
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": user,
                        "fsGroup": os.getegid() or USER,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [_container(run, cluster)],
                    "volumes": [
                        {"name": "home", "persistentVolumeClaim": {"claimName": cluster.claim}},
                        {"name": "scratch", **scratch},
                        {"name": "tmp", **scratch},
                    ],
                },
            },
        },
    }


def _container(run: RunOrder, cluster: Cluster) -> dict[str, Any]:
    names = environment(run.threads)
    return {
        "name": "run",
        "image": cluster.image,
        "command": entrypoint(),
        "args": arguments(run),
        "env": [{"name": name, "value": value} for name, value in names.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": _resources(run),
        "volumeMounts": [
            {"name": "scratch", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},
            {
                "name": "home",
                "mountPath": f"{HOME}/backbones",
                "subPath": "backbones",
                "readOnly": True,
            },
            {"name": "home", "mountPath": str(run.folder), "subPath": _below(run, run.folder)},
            *(
                {
                    "name": "home",
                    "mountPath": str(path),
                    "subPath": _below(run, path),
                    "readOnly": True,
                }
                for path in run.reads
            ),
        ],
    }


def _resources(run: RunOrder) -> dict[str, Any]:
    limits: dict[str, str] = {"cpu": str(run.threads)}
    if run.memory_bytes is not None:
        limits["memory"] = str(run.memory_bytes)
    if run.gpus:
        limits["nvidia.com/gpu"] = str(run.gpus)
    return {"requests": limits, "limits": limits}


def _below(run: RunOrder, path: Path) -> str:
    if not path.is_relative_to(run.home):
        raise EnvironmentProblem(
            f"A pod can't read '{path}': the volume that it shares with the workers is '{run.home}'. Put the backbone "
            "there."
        )
    return str(path.relative_to(run.home))


def _exit_code_of(pod: Any) -> int:
    for status in pod.status.container_statuses or []:
        ended = status.state.terminated
        if ended is not None:
            return OUT_OF_MEMORY if ended.reason == "OOMKilled" else int(ended.exit_code)
    return GONE  # evicted, or its node is gone


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Tell what the API server refuses, or that it is not there, as our errors."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise Unavailable(
            f"Kubernetes refuses ({error.status} {error.reason}): {str(error.body)[:300]}"
        ) from error
    except HTTPError as error:
        raise Unavailable(f"Kubernetes does not answer: {error}") from error
