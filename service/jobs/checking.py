"""The data gate in a process of its own, at low priority: a large file must not hold up predictions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from service.lifeline import live_and_die_with_parent
from training.contract import DataSettings
from training.findings import Report

_NICENESS = 15
# Each has a process, which takes 70 MB and what its file takes; the others wait, and hold up no uploads meanwhile.
_CHECKS = ThreadPoolExecutor(2, thread_name_prefix="check")
Result = TypeVar("Result")


async def check_upload(path: Path) -> dict[str, Any] | None:
    """Return what the gate says of a file by itself; None if its columns don't tell the task.

    Raises:
        InvalidData: it can't be read, or a line is bad.
    """
    return await _apart(_check_upload, str(path))


async def check_order_data(
    settings: DataSettings, task: str | None, options: dict[str, Any]
) -> Report:
    """Return what the gate says of a job's files together.

    Raises:
        InvalidData: training on them can't work.
        InvalidRequest: there is no such task, or the options are not the task's.
    """
    return await _apart(_check_order, settings, task, options)


async def _apart(act: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_CHECKS, _run_apart, act, *arguments)


def _run_apart(act: Callable[..., Result], *arguments: Any) -> Result:
    # In a thread with all of it: starting a process and waiting for its end take a fifth of a second and more.
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin) as pool:
        return pool.submit(act, *arguments).result()


def _begin() -> None:
    live_and_die_with_parent()
    os.nice(_NICENESS)


def _check_upload(path: str) -> dict[str, Any] | None:
    from training.gate import check_upload

    report = check_upload(path)
    return None if report is None else report.model_dump(mode="json")


def _check_order(settings: DataSettings, task: str | None, options: dict[str, Any]) -> Report:
    from adapters.tasks.catalog import get_task, task_class
    from training.gate import check_data

    if task is not None:
        task_class(task)
    checked = check_data(settings, task)
    checked.report.validate_data()
    cls = task_class(checked.report.task)
    targets = [example.target for example in checked.splits.train]
    get_task(checked.report.task, cls.options_from(options, targets))
    return checked.report
