"""A job stays its worker's while that is busy with it, and another's worker is not held up by a worker's own fault."""

import threading

import pytest

from adapters.registry.registry import Registry
from service.jobs import attempts
from service.jobs.queue import JobQueue
from tests.servers import wait_until
from tests.service.jobs.test_worker import ended


@pytest.fixture
def looks(monkeypatch):
    """Count how often workers look for jobs whose workers are silent."""
    seen, real = [], JobQueue.running

    def running(queue):
        seen.append(1)
        return real(queue)

    monkeypatch.setattr(JobQueue, "running", running)
    return seen


@pytest.mark.parametrize("busy", ["start", "end"])
def test_a_worker_that_is_long_at_a_start_or_an_end_keeps_its_job(
    place, submit, work, launcher, looks, monkeypatch, busy
):
    monkeypatch.setattr(attempts, "_BEAT_SECONDS", 0.02)
    at_it, go_on = threading.Event(), threading.Event()
    owner, name = (launcher, "start") if busy == "start" else (Registry, "create_version")
    real = getattr(owner, name)

    def slow(*given, **more):
        at_it.set()
        assert go_on.wait(60)
        return real(*given, **more)

    monkeypatch.setattr(owner, name, slow)
    job = submit()
    work(lease_seconds=1000)
    assert at_it.wait(60)
    work(lease_seconds=0.5)
    before = len(looks)
    wait_until(lambda: len(looks) > before + 100)  # 0.01 s and more apart
    go_on.set()
    done = ended(place, job)
    assert (done.status, done.attempt, len(launcher.started)) == ("succeeded", 1, 1)


def test_a_worker_outlives_a_fault_of_its_launcher(place, submit, work, launcher, monkeypatch):
    launcher.codes, called = [None], []

    def broken(*_, **options):
        called.append(options)
        raise RuntimeError("The engine answered nonsense.")

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "exit_code", broken)
        patch.setattr(launcher, "stop", broken)
        job = submit()
        work()
        wait_until(lambda: len(called) == 2)  # a look, and what ends the run for it
    other = submit(register={"name": "other"})
    assert ended(place, other).status == "succeeded"
    assert place.queue.get(job).status == "running"


def test_a_worker_that_is_to_end_when_idle_stays_for_what_another_one_runs(
    place, submit, work, looks
):
    job = submit()
    claimed = place.queue.claim("elsewhere-1")
    _, thread = work(idle_seconds=0.0)
    wait_until(lambda: len(looks) > 3)
    assert thread.is_alive()
    place.queue.fail(job, claimed.attempt, "code", "message")
    thread.join(30)
    assert not thread.is_alive()
