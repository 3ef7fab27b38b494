"""An order is checked before it is taken: files, backbone, name, resources; what it comes to is its plan."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from adapters.backbone import BackboneSpec
from adapters.errors import Conflict, InvalidData, InvalidRequest, NotFound
from adapters.reference import Reference, parse_reference
from adapters.registry.registry import Registry
from adapters.tasks.catalog import task_class
from adapters.validation import listed
from service.access.callers import Caller
from service.jobs.checking import check_order_data
from service.jobs.files import Files
from service.jobs.orders import JobOrder, JobPlan, LauncherName
from service.jobs.outcomes import check_register
from service.launchers.base import Launcher

# What a run calls a field, and what an order does.
_ORDER_FIELDS = {
    "data.train": "training_file",
    "data.validation": "validation_file",
    "data.test": "task.test_file",
    "data.columns": "task.columns",
    "task": "task.type",
}


class Intake:
    """Checks orders; nothing is changed by it.

    Args:
        launchers: those that this server's workers have, by name.
        default_launcher: for orders that name none.
    """

    def __init__(
        self,
        registry: Registry,
        files: Files,
        launchers: Mapping[str, Launcher],
        default_launcher: LauncherName,
    ) -> None:
        self._registry = registry
        self._files = files
        self._launchers = launchers
        self._default_launcher = default_launcher

    async def plan(self, order: JobOrder, job: str, who: Caller) -> JobPlan:
        """Return what an order comes to.

        Raises:
            InvalidRequest, InvalidData: something of it can't be done; ``param`` names the field.
            NotFound: its model or a file is not there.
            Conflict: its adapter's name is another task's.
        """
        if order.register_as is not None:
            check_register(order.register_as)
        launcher = self._check_resources(order)
        spec, parent = await asyncio.to_thread(self._model, order.model, who)
        named = {
            "training_file": order.training_file,
            "validation_file": order.validation_file,
            "task.test_file": order.task.test_file,
        }
        urls = {
            file: await asyncio.to_thread(self._url, param, file, who.namespace)
            for param, file in named.items()
            if file
        }
        # As a run will read it; the backbone and parent of the real one are known where it runs.
        config = order.run_config(urls, spec.name, order.task.type or "", None)
        try:
            report = await check_order_data(config.data, order.task.type, order.task.options)
        except (InvalidData, InvalidRequest) as error:
            error.param = _ORDER_FIELDS.get(error.param or "", error.param)
            raise
        adapter = order.adapter_name(job)
        await asyncio.to_thread(self._check_name, adapter, report.task, spec, who.namespace)
        if parent is not None:
            await asyncio.to_thread(self._check_parent, parent, report.task)
        return JobPlan(
            task=report.task,
            backbone=spec.fingerprint,
            adapter=adapter,
            launcher=launcher,
            parent=parent,
            rows={name: split.num_rows for name, split in report.splits.items()},
            warnings=report.warnings(),
        )

    def _check_resources(self, order: JobOrder) -> LauncherName:
        launcher = order.resources.launcher or self._default_launcher
        if launcher not in self._launchers:
            raise InvalidRequest(
                f"Launcher '{launcher}' is not set up here; there are {listed(sorted(self._launchers))}.",
                param="resources.launcher",
            )
        self._launchers[launcher].check(order.resources)
        return launcher

    def _model(self, name: str, who: Caller) -> tuple[BackboneSpec, str | None]:
        """Return the backbone that a model's name means, and the version whose training goes on if it names one."""
        known = self._registry.list_backbones()
        found = [spec for spec in known if spec.name == name]
        if found:
            return found[0], None
        try:
            version = self._registry.resolve(who.reference(name))
        except (InvalidRequest, NotFound) as error:
            raise NotFound(
                f"No model '{name[:100]}'. Backbones here: {listed([spec.name for spec in known])}; or name an adapter "
                "whose training is to go on.",
                param="model",
            ) from error
        spec = self._registry.get_backbone(version.manifest.backbone.fingerprint)
        return spec, str(
            Reference(version.name, version=version.number, namespace=version.namespace)
        )

    def _url(self, param: str, file: str, namespace: str) -> str:
        try:
            return self._files.url(file, namespace)
        except NotFound as error:
            raise NotFound(error.message, param=param) from error

    def _check_name(self, name: str, task: str, spec: BackboneSpec, namespace: str) -> None:
        """Refuse before hours of training what could not be registered after them."""
        if spec.family not in task_class(task).families:
            raise InvalidRequest(
                f"Backbone '{spec.name}' is an {spec.family} and can't do '{task}'.", param="model"
            )
        try:
            adapter = self._registry.get_adapter(name, namespace)
        except NotFound:
            return
        if adapter.task != task:
            raise Conflict(
                f"Adapter '{name}' is for '{adapter.task}'; this job is for '{task}'. Give it another name.",
                param="register.name",
            )
        newest = self._registry.resolve(
            Reference(name, version=adapter.latest, namespace=namespace)
        )
        if newest.manifest.backbone.fingerprint != spec.fingerprint:
            raise Conflict(
                f"Versions of '{name}' are for backbone '{newest.manifest.backbone.name}'; this job trains on "
                f"'{spec.name}'. Give it another name.",
                param="register.name",
            )

    def _check_parent(self, parent: str, task: str) -> None:
        manifest = self._registry.resolve(parse_reference(parent)).manifest
        if manifest.task != task:
            raise Conflict(
                f"'{parent}' does '{manifest.task}', and the files are for '{task}'. Name another model, or set task.",
                param="model",
            )
