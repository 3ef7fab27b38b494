"""A job's folder on a worker's machine: what its run reads and writes, and what of that is kept elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.backbone import find_backbone
from adapters.errors import RunFailed
from adapters.packaged import PACKAGED
from adapters.reference import parse_reference
from adapters.registry.registry import Registry
from adapters.storage import telling_store
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.records import Job
from service.launchers.base import RunOrder
from training.contract import (
    BUNDLE_NAME,
    CHECKPOINT_NAME,
    CONFIG_NAME,
    ESTIMATE_NAME,
    EVENTS_NAME,
    PAGE_NAME,
    RESULT_NAME,
    UNTRAINED_NAME,
    RunConfig,
)

if TYPE_CHECKING:
    from service.jobs.worker import Workplace

ASKED_NAME = f"requested-{CONFIG_NAME}"
LOG_NAME = "log.txt"
_PARENT_NAME = "parent"


def estimate_key(order: JobOrder, plan: JobPlan) -> str:
    """Return where what was expected of an order is kept: by what it names, wherever that lies when it is run."""
    files = {file: file for file in order.files()}
    config = order.run_config(files, plan.backbone, plan.task, plan.parent)
    return f"estimates/{config.digest()}.json"


class RunFolder:
    """``jobs/ID`` under home. A run on another machine goes on from the checkpoint in the store."""

    def __init__(self, place: Workplace, job: Job) -> None:
        self._place = place
        self._job = job
        self._root = place.home / "jobs" / job.id
        self.events = self._root / EVENTS_NAME
        self.bundle = self._root / BUNDLE_NAME
        self.log = self._root / LOG_NAME
        self._checkpoint = self._root / CHECKPOINT_NAME
        self._stored_at = 0.0  # the time of the checkpoint that was stored last

    def prepare(self) -> RunOrder:
        """Put files, parent and config where the run finds them, and return the order for its launcher.

        Raises:
            NotFound: a file, the parent or the backbone is gone since the job was ordered.
        """
        job, place = self._job, self._place
        data = self._root / "data"
        data.mkdir(parents=True, exist_ok=True)
        order = job.order
        files = {f: self._file(f, data) for f in order.files()}
        config = config_of(place.registry, order, job.plan, files, self._parent())
        (self._root / ASKED_NAME).write_text(config.model_dump_json(indent=2) + "\n")
        self._take_estimate(config)
        if place.registry.is_shared and not self._checkpoint.is_file():
            place.objects.get(self._key(CHECKPOINT_NAME), self._checkpoint)
        asked = order.resources
        if (
            job.plan.launcher != "process"
        ):  # a container has no package to prepare it from again and again
            find_backbone(config.backbone, place.home)
        named = (config.backbone, config.parent)
        reads = tuple(Path(each) for each in named if each and Path(each).is_dir())
        return RunOrder(
            job=job.id,
            attempt=job.attempt,
            folder=self._root,
            home=place.home,
            config_name=ASKED_NAME,
            reads=reads,
            threads=asked.threads or place.threads,
            memory_bytes=asked.memory_bytes,
            gpus=asked.gpus,
            workers=asked.workers,
        )

    def events_size(self) -> int:
        """Return where the events of a run to come begin."""
        return self.events.stat().st_size if self.events.is_file() else 0

    def result(self) -> dict[str, Any]:
        """Return what the run measured; raise `RunFailed` if it is not there."""
        try:
            result: dict[str, Any] = json.loads((self._root / RESULT_NAME).read_text())
        except (OSError, ValueError) as error:
            raise RunFailed(f"The run ended well but left no {RESULT_NAME}: {error}.") from error
        return result

    def store_checkpoint(self) -> None:
        """Keep a new checkpoint where other machines find it, if there are any."""
        if not self._place.registry.is_shared or not self._checkpoint.is_file():
            return
        written_at = self._checkpoint.stat().st_mtime
        if written_at != self._stored_at:
            self._place.objects.put(self._checkpoint, self._key(CHECKPOINT_NAME))
            self._stored_at = written_at

    def store_report(self) -> None:
        """Keep the run's report and log for whoever asks the server."""
        for path in (self._root / PAGE_NAME, self.log):
            if path.is_file():
                self._place.objects.put(path, self._key(path.name))

    def tidy(self) -> None:
        """Remove what a job that went well needs no more: its checkpoint, and copies of what is kept elsewhere."""
        self._checkpoint.unlink(missing_ok=True)
        self._place.objects.remove(self._key(CHECKPOINT_NAME))
        self.remove_copies()
        for name in (BUNDLE_NAME, UNTRAINED_NAME):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def remove_copies(self) -> None:
        for name in ("data", _PARENT_NAME):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        self._place.objects.remove(f"jobs/{self._job.id}")

    def _parent(self) -> Path | None:
        """Return the run's own copy of its parent: while it waits, is paused or tried again, the registry's may go."""
        own, part = self._root / _PARENT_NAME, self._root / f"{_PARENT_NAME}.part"
        if self._job.plan.parent is not None and not own.is_dir():
            bundle = fetch_parent(self._place.registry, self._job.plan)
            assert bundle is not None
            with telling_store(str(self._root)):
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(bundle, part).rename(own)
        return own if own.is_dir() else None

    def _take_estimate(self, config: RunConfig) -> None:
        """Put what was expected of the order, if it was asked, where its run compares it with the truth."""
        path = self._root / ESTIMATE_NAME
        if self._place.objects.get(estimate_key(self._job.order, self._job.plan), path):
            estimate = json.loads(path.read_text())
            path.write_text(json.dumps(estimate | {"config_digest": config.digest()}))

    def _file(self, file: str, data: Path) -> str:
        """Return where the run finds a file: where it is kept, or a copy for a run that can't reach that."""
        if self._job.plan.launcher == "process":
            return self._place.files.url(file, self._job.namespace)
        return str(self._place.files.fetch(file, data, self._job.namespace))

    def _key(self, name: str) -> str:
        return f"jobs/{self._job.id}/{name}"


def fetch_parent(registry: Registry, plan: JobPlan) -> Path | None:
    """Return where the bundle lies that a run goes on from, if it does.

    Raises:
        NotFound: it is gone since the order was checked.
    """
    if plan.parent is None:
        return None
    return registry.fetch(registry.resolve(parse_reference(plan.parent)))


def config_of(
    registry: Registry, order: JobOrder, plan: JobPlan, files: dict[str, str], parent: Path | None
) -> RunConfig:
    """Return what a run of an order is told.

    Args:
        files: where the order's files are, by their ids.
        parent: where the bundle is that it goes on from.

    Raises:
        BackboneMismatch: the backbone is gone since the order was checked.
    """
    spec = registry.get_backbone(plan.backbone)
    # A packaged one is prepared by the run, on whatever machine it is; else the folder that the registry knows.
    backbone = spec.name if spec.name in PACKAGED else spec.folder
    return order.run_config(files, backbone, plan.task, None if parent is None else str(parent))
