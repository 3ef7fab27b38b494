"""The queue: one worker a job at a time, nothing lost, nothing done twice, whatever dies."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import Conflict, NotFound, Overloaded
from adapters.registry.database import Database
from adapters.registry.tables import now
from service.jobs import queue as queue_module
from service.jobs.orders import JobOrder, JobPlan
from service.jobs.queue import JobQueue, LostJob

PLAN = JobPlan(task="text-classification", backbone="0" * 64, adapter="a")


def submit(queue, *, priority=0, plan=PLAN, **options):
    order = JobOrder(model="m", training_file="file-1", resources={"priority": priority})
    return queue.submit(order, plan, **options)


def messages(queue, job):
    return [event.message for event in queue.list_events(job.id)]


def test_an_order_is_claimed_as_it_was_sent(queue):
    translation = {"there": "en-de", "back": "de-en"}
    sent = {
        "model": "m",
        "training_file": "file-1",
        "task": {"augmentation": {"back_translation": translation, "copies": 2}},
        "register": {"name": "a", "promote_if": {}},
        "training": {"epochs": 2},
    }
    order = JobOrder.model_validate(sent)
    made = queue.submit(order, PLAN)
    assert queue.claim("w").order == made.order == order
    translation["url"] = "http://elsewhere"
    with pytest.raises(ValueError, match="leave its url out"):
        JobOrder.model_validate(sent)


def test_jobs_are_claimed_by_priority_then_age(queue):
    first, second, urgent = submit(queue), submit(queue), submit(queue, priority=5)
    claimed = [queue.claim("w").id for _ in range(3)]
    assert claimed == [urgent.id, first.id, second.id]
    assert queue.claim("w") is None


def test_a_worker_is_given_jobs_for_its_launchers_only(queue):
    ray = submit(queue, plan=PLAN.model_copy(update={"launcher": "ray"}), priority=9)
    plain = submit(queue)
    assert queue.claim("w", ["process", "container"]).id == plain.id
    assert queue.claim("w", ["process"]) is None
    assert queue.claim("w", ["process", "ray"]).id == ray.id


def test_there_is_work_as_long_as_a_job_waits_or_is_run(queue):
    def has_work():
        return [queue.has_work([launcher]) for launcher in ("process", "ray")]

    assert has_work() == [False, False]
    made = submit(queue)
    assert has_work() == [True, False]
    queue.pause(made.id)
    assert has_work() == [False, False]
    queue.resume(made.id)
    job = queue.claim("w")
    assert has_work() == [True, False]
    queue.succeed(job.id, job.attempt, {}, "a:1", "done")
    assert has_work() == [False, False]


def test_many_workers_never_get_one_job_twice(queue):
    jobs = {submit(queue).id for _ in range(40)}
    with ThreadPoolExecutor(8) as pool:
        claimed = [job.id for job in pool.map(lambda i: queue.claim(f"w{i}"), range(48)) if job]
    assert len(claimed) == len(set(claimed)) <= len(jobs)
    rest = []
    while (job := queue.claim("w")) is not None:
        rest.append(job.id)
    assert set(claimed) | set(rest) == jobs
    assert not set(claimed) & set(rest)


def test_a_worker_whose_job_was_taken_over_is_told_so(queue):
    submit(queue)
    job = queue.claim("old")
    job = queue.beat(job.id, job.attempt, handle={"pid": 1})
    taken = queue.take_over(job.id, job.attempt, job.beats, "new")
    assert (taken.attempt, taken.worker, taken.handle) == (2, "new", {"pid": 1})
    for word in (
        lambda: queue.beat(job.id, job.attempt),
        lambda: queue.succeed(job.id, job.attempt, {}, "a:1", "done"),
        lambda: queue.fail(job.id, job.attempt, "x", "y"),
        lambda: queue.give_back(job.id, job.attempt, "z", is_failure=True),
    ):
        with pytest.raises(LostJob):
            word()
    assert queue.succeed(job.id, 2, {}, "a:1", "done").status == "succeeded"


def test_a_worker_that_still_counts_is_not_taken_over(queue):
    submit(queue)
    job = queue.claim("w")
    queue.beat(job.id, job.attempt)
    assert queue.take_over(job.id, job.attempt, job.beats, "new") is None


def test_a_job_whose_attempts_die_goes_back_and_is_given_up_at_last(queue):
    made = submit(queue)
    for attempt in (1, 2, 3):
        job = queue.claim("w")
        assert job.attempt == attempt
        job = queue.give_back(job.id, job.attempt, "its run is gone", is_failure=True)
    assert (job.status, job.error["code"]) == ("failed", "worker_lost")
    assert "Given up after '3' attempts" in messages(queue, made)[-1]


def test_a_job_that_was_given_back_by_a_worker_that_stops_is_no_failure(queue):
    submit(queue)
    for _ in range(5):
        job = queue.claim("w")
        job = queue.give_back(job.id, job.attempt, "its worker stopped", is_failure=False)
    assert (job.status, job.num_failures) == ("queued", 0)


def test_a_paused_job_waits_until_it_is_resumed(queue):
    made = submit(queue)
    assert queue.pause(made.id).is_paused
    assert queue.claim("w") is None
    assert not queue.resume(made.id).is_paused
    job = queue.claim("w")
    assert queue.pause(made.id).wish == "pause"
    assert queue.stop(job.id, job.attempt, cancelled=False).is_paused
    assert queue.claim("w") is None


def test_what_was_wished_last_counts_when_a_run_ends_by_itself(queue):
    jobs = [submit(queue).id for _ in range(3)]
    claims = [queue.claim("w") for _ in jobs]
    queue.cancel(jobs[0])
    queue.pause(jobs[1])
    queue.pause(jobs[2])
    queue.resume(jobs[2])
    for job in claims[:2]:
        queue.give_back(job.id, job.attempt, "its run is gone", is_failure=True)
    queue.stop(claims[2].id, claims[2].attempt, cancelled=False)
    found = [queue.get(job) for job in jobs]
    assert [job.status for job in found] == ["cancelled", "queued", "queued"]
    assert [job.is_paused for job in found] == [False, True, False]


def test_a_job_that_has_ended_stays_as_it_is(queue):
    made = submit(queue)
    assert queue.cancel(made.id).status == "cancelled"
    for change in (queue.cancel, queue.pause, queue.resume):
        with pytest.raises(Conflict, match="'cancelled'"):
            change(made.id)


def test_the_same_key_gives_the_same_job_and_another_order_a_conflict(queue):
    first = submit(queue, idempotency_key="k")
    assert submit(queue, idempotency_key="k").id == first.id
    with pytest.raises(Conflict, match="'k'"):
        submit(queue, idempotency_key="k", priority=1)
    assert submit(queue, idempotency_key="k", namespace="other").id != first.id


def test_orders_with_one_key_that_come_at_once_make_one_job(queue):
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda _: submit(queue, idempotency_key="k").id, range(16))
    assert len(set(made)) == len(queue.list_jobs()) == 1


def test_a_namespace_has_its_quota_and_sees_its_own(queue):
    submit(queue, most_active=1)
    with pytest.raises(Overloaded, match="'1' jobs"):
        submit(queue, most_active=1)
    other = submit(queue, most_active=1, namespace="other")
    with pytest.raises(NotFound):
        queue.get(other.id)
    assert [job.id for job in queue.list_jobs(namespace="other")] == [other.id]


def test_a_key_has_its_own_quota(queue):
    first = submit(queue, key="a", most_of_key=1)
    with pytest.raises(Overloaded, match="'1' jobs"):
        submit(queue, key="a", most_of_key=1)
    submit(queue, key="b", most_of_key=1)
    queue.cancel(first.id)
    submit(queue, key="a", most_of_key=1)


def test_a_quota_holds_for_orders_that_come_at_once(queue):
    def order(_):
        try:
            return submit(queue, key="a", most_of_key=2)
        except Overloaded:
            return None

    with ThreadPoolExecutor(8) as pool:
        assert sum(job is not None for job in pool.map(order, range(16))) == 2


def test_a_page_of_jobs_by_their_metadata_is_read_no_further_than_it_goes(queue, monkeypatch):
    def order(number):
        told = {"even": str(number % 2 == 0), "n": str(number)}
        made = JobOrder(model="m", training_file="file-1", metadata=told)
        return queue.submit(made, PLAN).id

    ids, read, real = [order(number) for number in range(8)], [], queue_module.job_of
    submit(queue)  # without metadata

    def job_of(row):
        read.append(row.id)
        return real(row)

    monkeypatch.setattr(queue_module, "job_of", job_of)
    page = queue.list_jobs(metadata={"even": "True"}, limit=2)
    assert [job.id for job in page] == read == [ids[6], ids[4]]
    rest = queue.list_jobs(metadata={"even": "True"}, limit=9, after=ids[4])
    assert [job.id for job in rest] == [ids[2], ids[0]]
    assert queue.list_jobs(metadata={"even": "True", "n": "3"}) == []


def test_old_jobs_are_forgotten_some_at_a_time(queue, monkeypatch):
    monkeypatch.setattr(queue_module, "_FORGOTTEN_AT_ONCE", 2)
    ids = [submit(queue).id for _ in range(5)]
    for job in ids:
        queue.cancel(job)
    kept = submit(queue)
    assert queue.forget(now() - timedelta(hours=1)) == []
    assert [queue.forget(now()) for _ in range(4)] == [ids[:2], ids[2:4], ids[4:], []]
    assert [job.id for job in queue.list_jobs()] == [kept.id]
    assert [queue.list_events(job) for job in ids] == [[]] * 5


def test_workers_that_forget_at_once_share_what_there_is(queue, monkeypatch):
    monkeypatch.setattr(queue_module, "_FORGOTTEN_AT_ONCE", 3)
    ids = [queue.cancel(submit(queue).id).id for _ in range(20)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: queue.forget(now()), range(8)))
    while part := queue.forget(now()):
        parts.append(part)
    assert sorted(job for part in parts for job in part) == sorted(ids)


def test_what_a_run_says_is_told_whatever_is_in_it(queue):
    made = submit(queue)
    job = queue.claim("w")
    said = {"level": "info", "kind": "message", "message": "a\0b" + "x" * 9000, "data": {"a": "\0"}}
    queue.beat(job.id, job.attempt, events=[said])
    assert messages(queue, made)[-1].startswith("a\N{REPLACEMENT CHARACTER}bxx")
    assert queue.fail(job.id, job.attempt, "run_failed", "last\0words").status == "failed"


def test_lists_come_in_pages(queue):
    ids = [submit(queue).id for _ in range(5)]
    newest = queue.list_jobs(limit=2)
    assert [job.id for job in newest] == [ids[4], ids[3]]
    assert [job.id for job in queue.list_jobs(limit=2, after=ids[3])] == [ids[2], ids[1]]


actions = st.lists(
    st.sampled_from(
        ["submit", "claim", "beat", "die", "succeed", "fail", "pause", "resume", "cancel", "stop"]
    ),
    max_size=30,
)


@given(actions, st.randoms(use_true_random=False))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_each_job_has_one_end_and_one_owner(new_stores, history, random):
    queue = JobQueue(Database(new_stores().database_url))
    jobs, owned, ends = [], {}, {}
    for action in history:
        if action == "submit":
            jobs.append(submit(queue).id)
            continue
        if action == "claim":
            job = queue.claim("w")
            if job is not None:
                assert job.id not in owned
                assert job.id not in ends
                owned[job.id] = job.attempt
            continue
        pool = list(owned) if action in ("beat", "die", "succeed", "fail", "stop") else jobs
        if not pool:
            continue
        job = random.choice(sorted(pool))
        if action in ("pause", "resume", "cancel"):
            try:
                done = getattr(queue, action)(job)
            except Conflict:
                assert job in ends
                continue
            if done.status == "cancelled":
                ends[job] = "cancelled"
            continue
        attempt = owned[job]
        if action == "beat":
            queue.beat(job, attempt)
            continue
        del owned[job]
        if action == "die":
            done = queue.give_back(job, attempt, "died", is_failure=True)
        elif action == "succeed":
            done = queue.succeed(job, attempt, {}, "a:1", "done")
        elif action == "fail":
            done = queue.fail(job, attempt, "code", "message")
        else:
            done = queue.stop(job, attempt, cancelled=False)
        if done.status in ("succeeded", "failed", "cancelled"):  # as was wished meanwhile
            ends[job] = done.status
        with pytest.raises(LostJob):
            queue.beat(job, attempt)
    for job in jobs:
        found = queue.get(job)
        assert found.status == ends.get(job, "running" if job in owned else "queued")
        assert (found.finished_at is not None) == (job in ends)


def test_a_cancel_after_a_pause_ends_the_job_when_its_run_stops_for_the_pause(queue):
    job = submit(queue)
    claimed = queue.claim("w")
    queue.pause(job.id)
    queue.cancel(job.id)
    assert queue.stop(job.id, claimed.attempt, cancelled=False).status == "cancelled"
    assert queue.claim("w") is None
