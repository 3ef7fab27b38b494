"""``headstock worker``: runs the jobs of a queue."""

from __future__ import annotations

from service.commands.options import Home, load


def worker(home: Home = None) -> None:
    """Run jobs one at a time, until SIGTERM: the run that goes on then saves a checkpoint, and its job waits again."""
    import logging
    import signal

    from service.jobs.retention import Retention
    from service.jobs.worker import Worker, Workplace
    from service.launchers.catalog import set_up_launchers
    from service.lifeline import stop_with_parent
    from service.opening import open_state

    settings = load(home=home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker: %(message)s")
    state = open_state(settings)
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
    made = Worker(place)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: made.stop())
    stop_with_parent()
    made.run()
