"""Jobs for launchers that one worker has and another has not."""

from tests.service.jobs.test_worker import ended


def test_a_worker_leaves_jobs_for_launchers_that_it_has_not(place, submit, work):
    claimed = submit(launcher="container")
    assert place.queue.claim("elsewhere-1").id == claimed
    other, mine = submit(launcher="container"), submit()
    work(lease_seconds=0.01)
    assert ended(place, mine).status == "succeeded"
    last = submit()  # by now it has seen that nobody counts for the other one
    assert ended(place, last).status == "succeeded"
    found = [place.queue.get(job) for job in (other, claimed)]
    assert [(job.status, job.attempt) for job in found] == [("queued", 0), ("running", 1)]


def test_a_worker_takes_jobs_for_all_its_launchers(place, submit, work, launcher):
    place.launchers["container"] = launcher
    lost = submit(launcher="container")
    place.queue.claim("elsewhere-1")
    waiting = submit(launcher="container")
    work(lease_seconds=0.01)
    assert [ended(place, job).status for job in (lost, waiting)] == ["succeeded"] * 2
