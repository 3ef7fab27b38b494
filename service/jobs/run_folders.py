"""A job's folder on a worker's machine: what its run reads and writes, and what of that is kept elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import RunFailed
from adapters.packaged import PACKAGED
from adapters.reference import parse_reference
from service.jobs.records import Job
from service.launchers.base import RunOrder
from training.contract import (
    BUNDLE_NAME,
    CHECKPOINT_NAME,
    CONFIG_NAME,
    EVENTS_NAME,
    PAGE_NAME,
    RESULT_NAME,
)

if TYPE_CHECKING:
    from service.jobs.worker import Workplace

ASKED_NAME = f"requested-{CONFIG_NAME}"


class RunFolder:
    """``jobs/ID`` under home. A run on another machine goes on from the checkpoint in the store."""

    def __init__(self, place: Workplace, job: Job) -> None:
        self._place = place
        self._job = job
        self._root = place.home / "jobs" / job.id
        self.events = self._root / EVENTS_NAME
        self.bundle = self._root / BUNDLE_NAME
        self.log = self._root / "log.txt"
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
        ids = {order.training_file, order.validation_file, order.task.test_file} - {None}
        files = {str(f): str(place.files.fetch(str(f), data, job.namespace)) for f in ids}
        parent = self._parent()
        backbone = self._backbone()
        config = order.run_config(files, backbone, job.plan.task, str(parent) if parent else None)
        (self._root / ASKED_NAME).write_text(config.model_dump_json(indent=2) + "\n")
        if place.registry.is_shared and not self._checkpoint.is_file():
            place.objects.get(self._key(CHECKPOINT_NAME), self._checkpoint)
        asked = order.resources
        reads = tuple(Path(each) for each in (backbone, parent) if each and Path(each).is_dir())
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

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        self._place.objects.remove(f"jobs/{self._job.id}")

    def _key(self, name: str) -> str:
        return f"jobs/{self._job.id}/{name}"

    def _parent(self) -> Path | None:
        if self._job.plan.parent is None:
            return None
        version = self._place.registry.resolve(parse_reference(self._job.plan.parent))
        return self._place.registry.fetch(version)

    def _backbone(self) -> str:
        """Return a source that a run takes: a packaged name, or else the folder that the registry knows."""
        spec = self._place.registry.get_backbone(self._job.plan.backbone)
        return spec.name if spec.name in PACKAGED else spec.folder
