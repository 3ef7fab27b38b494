"""A run's numbers where people watch runs: TensorBoard always, MLflow if it is configured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapters.errors import EnvironmentProblem
from training.contract import Event, EventKind, RunConfig

TENSORBOARD_NAME = "tensorboard"
_MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
_NOT_NUMBERS_OF_A_FIT = ("done", "total", "eta_seconds")

Scalar = tuple[str, float, int]  # name, value, step
_STATUSES: dict[EventKind, str] = {  # MLflow's, of a run that ended
    EventKind.FINISHED: "FINISHED",
    EventKind.FAILED: "FAILED",
    EventKind.PAUSED: "KILLED",
}


def scalars(event: Event) -> Iterator[Scalar]:
    """Yield what an event says of a fit: ``fit/loss`` and its like by step, ``validation/…`` and ``test/…``."""
    if event.kind == EventKind.PROGRESS and event.data.get("stage") == "fit":
        for name, value in event.data.items():
            if isinstance(value, float) and name not in _NOT_NUMBERS_OF_A_FIT:
                yield f"fit/{name}", value, int(event.data["done"])
    elif event.kind == EventKind.METRICS and event.data["of"] in ("fit", "after"):
        for name, value in event.data["metrics"].items():
            yield f"{event.data['split']}/{name}", float(value), event.data.get("step", 0)


def tensorboard_tracker(folder: Path) -> Callable[[Event], None]:
    """Return a listener that writes TensorBoard's files into a folder, from a run's first number on."""
    writer: Any = None

    def track(event: Event) -> None:
        nonlocal writer
        for name, value, step in scalars(event):
            if writer is None:
                from torch.utils.tensorboard import SummaryWriter  # brings torch along

                writer = SummaryWriter(str(folder))
            writer.add_scalar(name, value, step)
            writer.flush()  # a run that is killed leaves what it knew

    return track


def mlflow_tracker(config: RunConfig, out: Path) -> Callable[[Event], None] | None:
    """Return a listener that logs to MLflow; None unless ``MLFLOW_TRACKING_URI`` names a server or folder.

    MLflow's own variables name the experiment (``MLFLOW_EXPERIMENT_NAME``) and the credentials.

    Raises:
        EnvironmentProblem: it is named, but mlflow is not installed, or takes no run there.
    """
    if not os.environ.get(_MLFLOW_VARIABLE):
        return None
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{_MLFLOW_VARIABLE} is set to '{os.environ[_MLFLOW_VARIABLE]}', but mlflow is not installed. "
            "Install it (pip install 'headstock[mlflow]'), or unset the variable."
        ) from error
    try:
        return _MlflowRun(MlflowClient(), config, out)
    except Exception as error:  # each of its stores has exceptions of its own
        raise EnvironmentProblem(
            f"MLflow at '{os.environ[_MLFLOW_VARIABLE]}' took no run: {error}. Start its server, or unset "
            f"{_MLFLOW_VARIABLE}."
        ) from error


class _MlflowRun:
    """One run at MLflow; its state follows that of ours."""

    def __init__(self, client: Any, config: RunConfig, out: Path) -> None:
        self._client = client
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "headstock")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        self._run_id = client.create_run(experiment, run_name=out.name).info.run_id
        for key, value in _flat(config.model_dump(mode="json")):
            client.log_param(self._run_id, key, value)

    def __call__(self, event: Event) -> None:
        for name, value, step in scalars(event):
            self._client.log_metric(self._run_id, name, value, step=step)
        if event.kind in _STATUSES:
            self._client.set_terminated(self._run_id, _STATUSES[event.kind])


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
