"""Jobs that this version can't read, as another has stored them: shown, left to workers that can, in nobody's way."""

import pytest

from service.jobs.tables import JobTable
from service.machine import machine_name
from tests.servers import wait_until

UNREADABLE = {
    "a key": ("order", {"nodes": 4}),
    "a key further in": ("order", {"lora": {"rank": 4, "shape": "ring"}}),
    "a value": ("order", {"resources": {"launcher": "nomad"}}),
    "half a character": ("order", {"suffix": "\ud800"}),
    "what an order can't be without": ("order", {"model": {"name": "m"}}),
    "the plan": ("plan", {"launcher": "process", "zone": "b"}),
}


@pytest.fixture
def store(database):
    """Change what is stored of a job, as another version might have it."""

    def change(job, column, fields):
        with database.write() as session:
            row = session.query(JobTable).filter_by(id=job).one()
            setattr(row, column, {**getattr(row, column), **fields})

    return change


def warnings(queue, job):
    return [event.message for event in queue.list_events(job) if event.level == "warn"]


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_job_that_can_not_be_read_is_shown_and_left_to_others(queue, submit, store, what):
    unread, plain = submit(seed=5, resources={"priority": 9}), submit()
    store(unread, *UNREADABLE[what])
    assert queue.claim("w", ["process"]).id == plain
    assert queue.claim("w", ["process"]) is None
    shown = queue.list_jobs()[1]
    assert (shown.id, shown.status, shown.order.seed) == (unread, "queued", 5)
    assert shown.unread
    assert shown.order.model == ("?" if what.startswith("what") else "tiny-llama")
    assert len(warnings(queue, unread)) == 1
    assert "can't read this order" in warnings(queue, unread)[0]
    assert queue.cancel(unread).status == "cancelled"


def test_a_worker_goes_on_beside_jobs_that_it_can_not_read(place, submit, store, work):
    running, waiting, plain = submit(), submit(), submit()
    nobody = f"{machine_name()}-{2**22 + 1}"  # above all numbers of processes
    assert place.queue.claim(nobody).id == running
    for job in (running, waiting):
        store(job, "order", {"nodes": 4})
    work()
    wait_until(lambda: place.queue.get(plain).status == "succeeded")
    left = [place.queue.get(job) for job in (running, waiting)]
    assert [(job.status, job.attempt) for job in left] == [("running", 1), ("queued", 0)]
