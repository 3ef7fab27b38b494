"""Workers are there when there is work; their log goes on, and what it holds is put aside when that is long."""

import sys

import pytest

from adapters.errors import Unavailable
from service import job_workers
from service.job_workers import JobWorkers, keep_short
from service.settings import Settings
from tests.servers import wait_until


class Work:
    """Says what it is told to, and counts how often it is asked."""

    def __init__(self):
        self.answer, self.num_looks = False, 0

    def __call__(self):
        self.num_looks += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def wait_for_looks(self):
        seen = self.num_looks
        wait_until(lambda: self.num_looks > seen + 2)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def workers(tmp_path, work, monkeypatch):
    for name in ("_LOOK_SECONDS", "_PAUSE_SECONDS"):
        monkeypatch.setattr(job_workers, name, 0.01)
    there = (sys.executable, "-c", "import threading; threading.Event().wait()")
    monkeypatch.setattr(job_workers, "_COMMAND", there)
    workers = JobWorkers(Settings(home=tmp_path, job_workers=2), work)
    workers.start()
    yield workers
    workers.stop()


def end(processes):
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("nothing", [False, Unavailable("The database is gone."), ValueError()])
def test_there_are_workers_as_long_as_there_is_work(workers, work, nothing):
    work.answer = nothing
    work.wait_for_looks()
    assert workers._processes == []
    work.answer = True
    first = wait_until(lambda: len(workers._processes) == 2 and list(workers._processes))
    end(first[:1])
    wait_until(lambda: len(workers._processes) == 2 and first[0] not in workers._processes)
    work.answer = nothing
    end(list(workers._processes))
    work.wait_for_looks()
    assert workers._processes == []


def test_workers_start_while_an_order_is_checked(workers, work):
    work.wait_for_looks()
    workers.call()
    wait_until(lambda: len(workers._processes) == 2)


def test_workers_come_now_and_then_to_remove_what_is_old(workers, work, monkeypatch):
    work.wait_for_looks()
    assert workers._processes == []
    monkeypatch.setattr(job_workers, "_ROUND_SECONDS", 0.0)
    wait_until(lambda: len(workers._processes) == 2)


def test_what_a_long_log_holds_is_put_aside_and_its_writer_goes_on(tmp_path):
    path, before = tmp_path / "worker.log", tmp_path / "worker.log.1"
    keep_short(path)
    with path.open("a") as log:
        for line in ("one", "two", "three", "four"):
            log.write(line)
            log.flush()
            keep_short(path, max_bytes=5)
    assert (before.read_text(), path.read_text()) == ("threefour", "")
