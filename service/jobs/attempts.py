"""One attempt at a job: its run started or found again, followed and stopped, and what came of it told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters.errors import HeadstockError, StorageFull, Unavailable
from service.jobs.outcomes import register_result
from service.jobs.records import Job
from service.jobs.run_events import as_job_event, progress_of, read_events
from service.jobs.run_folders import RunFolder
from service.jobs.states import ENDED, Status
from service.launchers.base import GONE, NOT_STARTED, OUT_OF_MEMORY
from service.runs import last_line
from training.contract import Event, EventKind, ExitCode

if TYPE_CHECKING:
    from service.jobs.worker import Workplace

logger = logging.getLogger(__name__)
_BEAT_SECONDS = 2.0
_MOST_COUNTED_SECONDS = 3600.0  # then whoever is busy hangs, and another one may try
_METRICS_SECONDS = 5.0  # between two events of a fit's progress
_GRACE_SECONDS = 30.0  # for a checkpoint, before a run that was asked to stop is ended
_BY_SIGTERM = (-15, 143)  # it came before the run could listen
_Reason = Literal["cancel", "pause", "timeout", "worker"]


class Attempt:
    """What a worker does for a job; every word to the queue names the attempt, and may raise `LostJob`."""

    def __init__(
        self, place: Workplace, job: Job, stopping: threading.Event, poll_seconds: float
    ) -> None:
        self._place = place
        self._job = job
        self._stopping = stopping
        self._poll_seconds = poll_seconds
        self._folder = RunFolder(place, job)
        self._launcher = place.launchers[job.plan.launcher]
        self._handle = job.handle
        self._progress = dict(job.progress or {})
        self._position = 0  # in the run's file of events
        self._failure: Event | None = None
        self._wish = job.wish
        self._begin = self._beat_at = time.monotonic()
        self._metrics_at = 0.0
        self._clear: Callable[[], None] | None = None  # once all has been told
        self._asked: tuple[_Reason, float] | None = None  # why the run is to stop, and since when

    def run(self) -> None:
        """Run the job to its end, or until it is to stop."""
        if self._handle is not None and self._launcher.exit_code(self._handle) == GONE:
            self.give_back("its run is gone")
            return
        if self._handle is None:
            self._start_or_give_back()
        code = self._follow()
        with self._counting():
            self._insist(lambda: self._end(code))
        self._clear_away()

    def leave(self) -> None:
        """End what this attempt started, unless the attempt after it goes on with that very run."""
        now = self._place.queue.get(self._job.id, None)
        if self._handle is not None and now.handle != self._handle:
            self._launcher.stop(self._handle, at_once=True)

    def fail(self, error: HeadstockError) -> None:
        """End the job as failed, for a reason that trying again does not cure."""
        self._end_run()
        queue = self._place.queue
        self._insist(
            lambda: queue.fail(
                self._job.id, self._job.attempt, error.code, error.message, error.param
            )
        )
        self._folder.remove_copies()

    def give_back(self, why: str, *, is_failure: bool = True) -> None:
        """Return the job to the queue."""
        self._end_run()
        queue = self._place.queue
        self._insist(
            lambda: queue.give_back(self._job.id, self._job.attempt, why, is_failure=is_failure)
        )

    def _start_or_give_back(self) -> None:
        try:
            with self._counting():
                self._start()
        except Unavailable as error:
            # Of the store or the launcher: not the job's fault, and told to whoever waits for it.
            self.give_back(error.message, is_failure=False)
            raise

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count that the worker lives while it is busy with what tells nothing: files that it copies, or registers."""
        is_done = threading.Event()

        def count() -> None:
            deadline = time.monotonic() + _MOST_COUNTED_SECONDS
            while not is_done.wait(_BEAT_SECONDS) and time.monotonic() < deadline:
                with suppress(
                    HeadstockError
                ):  # what is wrong, the worker's own next word finds out
                    self._place.queue.beat(self._job.id, self._job.attempt)

        counter = threading.Thread(target=count, name="beats", daemon=True)
        counter.start()
        try:
            yield
        finally:
            is_done.set()
            counter.join()

    def _clear_away(self) -> None:
        """Remove what is needed no more; what can't be removed now is no reason to end a job again."""
        assert self._handle is not None
        try:
            self._launcher.forget(self._handle)
            if self._clear is not None:
                self._clear()
        except HeadstockError as error:
            logger.warning("%s: left behind: %s", self._job.id, error.message)

    def _start(self) -> None:
        run = self._folder.prepare()
        self._position, self._progress = self._folder.events_size(), {}
        self._handle = self._launcher.start(run)
        self._place.queue.beat(self._job.id, self._job.attempt, handle=self._handle)

    def _follow(self) -> int:
        """Tell what the run does until it ends; returns its exit code."""
        assert self._handle is not None
        while (code := self._launcher.exit_code(self._handle)) is None:
            try:
                self._report()
            except (Unavailable, StorageFull) as error:  # the run goes on without database or store
                logger.warning("%s", error.message)
            self._stop_if_need_be()
            self._wait()
        self._insist(lambda: self._report(is_last=True), or_not=StorageFull)
        return code

    def _wait(self) -> None:
        if self._asked is None:
            self._stopping.wait(self._poll_seconds)
        else:
            time.sleep(self._poll_seconds)

    def _report(self, *, is_last: bool = False) -> None:
        """Hand on what the run has said since, if there is anything or a beat is due."""
        events, position = read_events(self._folder.events, self._position)
        told_before = self._progress.get("event", 0) if self._position == 0 else 0
        new = [event for event in events if event.number > told_before]
        told = [event for event in new if self._is_told(event)]
        now = time.monotonic()
        if not (told or is_last) and now - self._beat_at < _BEAT_SECONDS:
            return
        progress = dict(self._progress)
        for event in new:
            if event.kind == EventKind.PROGRESS:
                progress = progress_of(event)
            progress["event"] = event.number
        job = self._place.queue.beat(
            self._job.id,
            self._job.attempt,
            events=[as_job_event(event) for event in told],
            progress=progress,
        )
        self._position, self._progress, self._beat_at, self._wish = (
            position,
            progress,
            now,
            job.wish,
        )
        if any(event.kind == EventKind.PROGRESS for event in told):
            self._metrics_at = now
        self._failure = next((e for e in new if e.kind == EventKind.FAILED), self._failure)
        self._folder.store_checkpoint()

    def _is_told(self, event: Event) -> bool:
        """Tell whether an event is kept: of a fit's progress, one every few seconds and the last."""
        if event.kind != EventKind.PROGRESS:
            return True
        is_due = time.monotonic() - self._metrics_at >= _METRICS_SECONDS
        is_end = event.data.get("done") == event.data.get("total")
        return event.data.get("stage") == "fit" and (is_due or is_end)

    def _stop_if_need_be(self) -> None:
        assert self._handle is not None
        now, reason = time.monotonic(), self._reason()
        if self._asked is None and reason is not None:
            self._asked = (reason, now)
            self._launcher.stop(self._handle, at_once=reason == "cancel")
        elif self._asked is not None and now - self._asked[1] > _GRACE_SECONDS:
            self._launcher.stop(self._handle, at_once=True)

    def _reason(self) -> _Reason | None:
        most = self._job.order.resources.timeout_seconds or self._place.timeout_seconds
        if self._wish == "cancel":
            return "cancel"
        if self._wish == "pause":
            return "pause"
        if most is not None and time.monotonic() - self._begin > most:
            return "timeout"
        return "worker" if self._stopping.is_set() else None

    def _end(self, code: int) -> None:
        """Tell the queue how the attempt ended."""
        queue, job, attempt = self._place.queue, self._job.id, self._job.attempt
        reason = self._asked[0] if self._asked else None
        if code == ExitCode.DONE:
            self._succeed()
        elif reason == "cancel":
            queue.stop(job, attempt, cancelled=True)
            self._clear = self._folder.remove
        elif reason == "timeout":
            most = self._job.order.resources.timeout_seconds or self._place.timeout_seconds
            told = f"It took longer than '{most}' seconds. Raise resources.timeout_seconds."
            self._failed("timeout", told, "resources.timeout_seconds")
        elif reason == "pause" and (code == ExitCode.PAUSED or code in _BY_SIGTERM):
            self._folder.store_checkpoint()
            self._clear_if_cancelled(queue.stop(job, attempt, cancelled=False))
        elif code == ExitCode.PAUSED or code in _BY_SIGTERM or reason is not None:
            self._folder.store_checkpoint()
            left = queue.give_back(job, attempt, "its worker stopped", is_failure=reason is None)
            self._clear_if_cancelled(left)
        elif code == OUT_OF_MEMORY:
            bound = self._job.order.resources.memory_bytes
            told = f"It needed more memory than its bound of '{bound}' bytes. Raise resources.memory_bytes."
            self._failed("out_of_memory", told, "resources.memory_bytes")
        elif code in (ExitCode.FAILED, ExitCode.BAD_INPUT):
            self._told_failure()
        elif code == NOT_STARTED:
            queue.give_back(job, attempt, "no node had room for it", is_failure=False)
        else:
            self._store_report()
            left = queue.give_back(job, attempt, _how(code, self._folder.log), is_failure=True)
            if left.status in ENDED:
                self._clear = self._folder.remove_copies

    def _clear_if_cancelled(self, job: Job) -> None:
        """Leave nothing of a job that was cancelled while its run was stopping for another reason."""
        if job.status == Status.CANCELLED:
            self._clear = self._folder.remove

    def _succeed(self) -> None:
        result = self._folder.result()
        model, told = register_result(self._place.registry, self._job, self._folder.bundle)
        self._store_report()
        self._place.queue.succeed(self._job.id, self._job.attempt, result, model, told)
        self._clear = self._folder.tidy

    def _store_report(self) -> None:
        """Keep report and log for whoever asks, if the store takes them."""
        try:
            self._folder.store_report()
        except HeadstockError as error:
            logger.warning("%s: its report is not kept: %s", self._job.id, error.message)

    def _failed(self, code: str, message: str, param: str | None = None) -> None:
        self._store_report()
        self._place.queue.fail(self._job.id, self._job.attempt, code, message, param)
        self._clear = self._folder.remove_copies

    def _told_failure(self) -> None:
        """End the job for the reason that its run gave; without one, for the last line of its log."""
        if self._failure is None:
            self._failed("run_failed", last_line(self._folder.log))
        else:
            data = self._failure.data
            code = data.get("code", "run_failed")
            self._failed(code, self._failure.message, data.get("param"))

    def _end_run(self) -> None:
        if self._handle is not None:
            self._launcher.stop(self._handle, at_once=True)

    def _insist(
        self, act: Callable[[], object], or_not: type[HeadstockError] | tuple[()] = ()
    ) -> None:
        """Do what must be told, as soon as database and store take it; not if the worker is to stop meanwhile.

        Args:
            or_not: what may keep it from being done.
        """
        while True:
            try:
                act()
                return
            except or_not as error:
                logger.warning("%s", error.message)
                return
            except (Unavailable, StorageFull) as error:
                logger.warning("%s", error.message)
                if self._stopping.wait(self._poll_seconds):
                    raise


def _how(code: int, log: Path) -> str:
    """Return what to say of an end that is worth another attempt."""
    if code == ExitCode.INTERRUPTED:
        return f"its run lost a process of its fit, or found no room on the disk: {last_line(log)}"
    return "its run is gone" if code == GONE else f"its run ended with code '{code}'"
