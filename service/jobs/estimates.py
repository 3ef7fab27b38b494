"""What a job would take, measured before it is ordered: a few steps by a run that makes nothing."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path

from adapters.errors import InvalidRequest, Unavailable
from adapters.registry.registry import Registry
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.run_folders import config_of, estimate_key, fetch_parent
from service.machine import has_gpu
from service.runs import execute_run
from training.contract import ESTIMATE_NAME, Estimate

_NICENESS = 15


class Estimates:
    """Measures one order at a time, for the machine is shared with predictions.

    Args:
        home: folder of prepared backbones.
        threads: of a run that does not say.
    """

    def __init__(
        self, registry: Registry, files: Files, objects: ObjectStore, home: Path, threads: int
    ) -> None:
        self._registry = registry
        self._files = files
        self._objects = objects
        self._home = home
        self._threads = threads
        self._turn = asyncio.Lock()
        self._is_stopped = False

    def stop(self) -> None:
        """Answer those that are measured or wait for their turn with an error; from any thread."""
        self._is_stopped = True

    async def measure(self, order: JobOrder, plan: JobPlan, namespace: str) -> Estimate:
        """Return bands of seconds and bytes, steps and tokens.

        The same order, sent as a job later, has in its record how far off this was. A cancelled call ends its run.

        Raises:
            InvalidRequest: the order is for a GPU, and there is none here.
            Unavailable: the server stops.
        """
        if order.resources.gpus and not has_gpu():
            raise InvalidRequest(
                f"resources.gpus is '{order.resources.gpus}', and this server, which measures by itself, has no GPU. "
                "Ordered as a job it may find one where its run starts. To learn its steps and tokens, and what it "
                "takes on a CPU, send it without resources.gpus.",
                param="resources.gpus",
            )
        is_left = threading.Event()
        async with self._turn:
            try:
                return await asyncio.to_thread(self._measure, order, plan, namespace, is_left)
            finally:
                is_left.set()

    def _measure(
        self, order: JobOrder, plan: JobPlan, namespace: str, is_left: threading.Event
    ) -> Estimate:
        def check() -> None:
            if self._is_stopped or is_left.is_set():
                raise Unavailable(
                    "The server stopped before this was measured. Send the request again."
                )

        files = {file: self._files.url(file, namespace) for file in order.files()}
        parent = fetch_parent(self._registry, plan)
        config = config_of(self._registry, order, plan, files, parent)
        threads = order.resources.threads or self._threads
        with tempfile.TemporaryDirectory(prefix="headstock-estimate-") as scratch:
            result = execute_run(
                config.model_copy(update={"action": "estimate"}),
                Path(scratch),
                self._home,
                lambda event: None,
                niceness=_NICENESS,
                threads=threads,
                check=check,
            )
            self._objects.put(Path(scratch) / ESTIMATE_NAME, estimate_key(order, plan))
        if result.estimate is None:
            raise InvalidRequest("The run told no estimate. Look at its log.")
        return result.estimate
