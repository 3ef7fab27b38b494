"""``headstock worker``: runs the jobs of a queue."""

from __future__ import annotations

from typing import Annotated

import typer

from adapters.imports import many_imports
from service.commands.options import Home, load, warn_of_misspelt


def worker(
    home: Home = None,
    idle_seconds: Annotated[
        float | None, typer.Option(min=0, help="End after so long without any job to run.")
    ] = None,
) -> None:
    """Run jobs one at a time, until SIGTERM: the run that goes on then saves a checkpoint, and its job waits again."""
    import logging

    from service.lifeline import stop_on_signals, stop_with_parent

    stop_with_parent()  # first of all: a server can be gone while this is imported
    with many_imports():
        from service.jobs.retention import Retention
        from service.jobs.worker import Worker, Workplace
        from service.launchers.catalog import set_up_launchers
        from service.opening import check_store, open_state
    settings = load(home=home)
    warn_of_misspelt()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker: %(message)s")
    for library in ("alembic", "botocore", "aiobotocore"):  # theirs is not about jobs
        logging.getLogger(library).setLevel(logging.WARNING)
    state = open_state(settings)
    check_store(state.objects, writes=True)
    place = Workplace(
        state.queue,
        state.files,
        state.objects,
        state.registry,
        set_up_launchers(settings),
        settings.home,
        threads=settings.run_threads,
        timeout_seconds=settings.job_timeout_seconds,
        retention=Retention(settings.job_days, settings.file_days),
    )
    made = Worker(place, idle_seconds=idle_seconds)
    stop_on_signals(made.stop)
    made.run()
