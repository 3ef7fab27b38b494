"""What a worker makes of what happens to a run, with a launcher whose runs do as they are told."""

import json
import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.errors import EnvironmentProblem, StorageFull, Unavailable
from adapters.registry.tables import now
from service.jobs.objects import ObjectStore
from service.jobs.queue import JobQueue
from service.jobs.retention import Retention
from service.jobs.run_folders import estimate_key
from service.machine import machine_name
from tests.bundles import answerer, classifier, save_bundle
from tests.servers import wait_until
from training.contract import ExitCode, RunConfig


def ended(place, job):
    return wait_until(
        lambda: (
            (found := place.queue.get(job)).status in ("succeeded", "failed", "cancelled") and found
        )
    )


def messages(place, job):
    return [event.message for event in place.queue.list_events(job)]


def test_a_run_that_ends_well_is_registered(place, submit, work):
    job = submit(register={"name": "films", "alias": "production", "tags": {"a": "b"}})
    work()
    done = ended(place, job)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "films:1")
    version = place.registry.list_versions("films")[0]
    assert version.tags == {"a": "b", "job": job}
    assert place.registry.get_alias("films", "production").version == 1
    assert done.result["num_tokens"] == 7


def test_a_run_has_its_own_copy_of_its_parent_for_all_its_attempts(place, submit, work, launcher):
    place.registry.create_version("parents", launcher.bundle)
    launcher.codes = [None, None]
    job = submit(parent="parents:1")
    work()
    run = wait_until(lambda: launcher.started and launcher.started[0])
    parent = Path(json.loads((run.folder / run.config_name).read_text())["parent"])
    assert parent in run.reads
    place.registry.delete_adapter("parents")
    place.registry.collect(-timedelta(hours=1))
    launcher.ends["run-0"] = -11
    again = wait_until(lambda: len(launcher.started) > 1 and launcher.started[1])
    assert parent in again.reads
    assert (parent / "manifest.json").is_file()
    launcher.ends["run-1"] = ExitCode.DONE
    assert ended(place, job).status == "succeeded"
    wait_until(lambda: not parent.exists())


def test_a_job_that_fails_keeps_no_copy_of_its_parent(place, submit, work, launcher):
    place.registry.create_version("parents", launcher.bundle)
    launcher.codes = [ExitCode.FAILED]
    job = submit(parent="parents:1")
    work()
    assert ended(place, job).status == "failed"
    wait_until(lambda: not (place.home / "jobs" / job / "parent").exists())


@pytest.mark.parametrize("parent", [None, "parents:1"])
def test_a_run_finds_what_was_expected_of_its_order(
    place, submit, work, launcher, tmp_path, parent
):
    place.registry.create_version("parents", launcher.bundle)
    launcher.codes = [None]
    job = submit(parent=parent)
    asked = place.queue.get(job)
    (tmp_path / "estimate.json").write_text('{"config_digest": "another", "num_steps": 7}')
    place.objects.put(tmp_path / "estimate.json", estimate_key(asked.order, asked.plan))
    work()
    run = wait_until(lambda: launcher.started and launcher.started[0])
    config = RunConfig.model_validate_json((run.folder / run.config_name).read_text())
    found = json.loads((run.folder / "estimate.json").read_text())
    assert found == {"config_digest": config.digest(), "num_steps": 7}


def test_a_run_that_takes_too_long_is_stopped_and_then_ended_and_its_log_is_kept(
    place, submit, work, launcher, tmp_path
):
    launcher.codes = [None]
    job = submit(resources={"timeout_seconds": 1})
    work()
    done = ended(place, job)
    assert (done.status, done.error["code"]) == ("failed", "timeout")
    assert launcher.stopped == [False]
    assert place.objects.get(f"jobs/{job}/log.txt", tmp_path / "log.txt")


def test_the_reason_a_run_gives_is_the_job_s(place, submit, work, launcher):
    launcher.codes = [ExitCode.FAILED]
    launcher.events = ((1, "started", "begin"), (2, "failed", "The loss became 'nan'."))
    job = submit()
    work()
    assert ended(place, job).error["message"] == "The loss became 'nan'."
    assert "begin" in messages(place, job)


def test_without_a_reason_the_last_line_of_the_log_is_told(place, submit, work, launcher):
    launcher.codes = [ExitCode.FAILED]
    job = submit()
    work()
    assert ended(place, job).error["message"] == "last words"


def test_a_launcher_that_cannot_start_fails_the_job(place, submit, work, launcher, monkeypatch):
    def broken(run):
        raise EnvironmentProblem("No engine for containers answers.")

    monkeypatch.setattr(launcher, "start", broken)
    job = submit()
    work()
    assert ended(place, job).error["code"] == "environment"


def test_a_name_that_was_taken_meanwhile_fails_the_job(place, submit, work, decoder_spec, tmp_path):
    save_bundle(tmp_path / "answers", decoder_spec, answerer())
    place.registry.create_version("films", tmp_path / "answers")
    job = submit()
    work()
    assert ended(place, job).error["code"] == "conflict"


def test_an_alias_that_is_not_earned_stays_and_the_job_says_why(
    place, submit, work, decoder_spec, tmp_path
):
    save_bundle(tmp_path / "old", decoder_spec, classifier(), seed=5)
    place.registry.create_version("films", tmp_path / "old")
    place.registry.set_alias("films", "production", 1)
    job = submit(register={"name": "films", "promote_if": {"min_gain": 0.1}})
    work()
    assert ended(place, job).fine_tuned_model == "films:2"
    assert place.registry.get_alias("films", "production").version == 1
    assert "'production' was not moved" in messages(place, job)[-1]


def test_a_worker_that_stops_gives_its_job_back_unharmed(place, submit, work, launcher):
    launcher.codes = [None]
    job = submit()
    worker, thread = work()
    wait_until(lambda: launcher.started)
    worker.stop()
    thread.join(30)
    found = place.queue.get(job)
    assert (found.status, found.num_failures) == ("queued", 0)
    work()
    assert ended(place, job).status == "succeeded"


def test_a_run_is_found_again_and_its_events_are_told_once(place, submit, work, launcher):
    launcher.codes = [None]
    launcher.events = ((1, "started", "one"), (2, "stage", "two"))
    job = submit()
    claimed = place.queue.claim("elsewhere-1")
    # What a worker of another machine had done when it died.
    from service.jobs.run_folders import RunFolder

    run = RunFolder(place, claimed).prepare()
    handle = launcher.start(run)
    seen = [{"level": "info", "kind": "message", "message": "one", "data": {}}]
    place.queue.beat(job, claimed.attempt, handle=handle, events=seen, progress={"event": 1})
    work(lease_seconds=0.05)
    wait_until(lambda: "two" in messages(place, job))
    launcher.ends[handle["name"]] = ExitCode.DONE
    assert ended(place, job).status == "succeeded"
    told = messages(place, job)
    assert (told.count("one"), told.count("two"), len(launcher.started)) == (1, 1, 1)


def test_only_this_machine_s_dead_workers_lose_their_jobs_at_once(place, submit, work):
    nobody = 2**22 + 1  # above all numbers of processes
    elsewhere = f"{socket.gethostname()}-{'0' * 8}-{nobody}"  # a copy of this virtual machine
    jobs = {}
    for worker in (elsewhere, f"{machine_name()}-{nobody}"):
        jobs[worker] = submit(register={"name": f"films-{len(jobs)}"})
        assert place.queue.claim(worker).id == jobs[worker]
    kept, lost = jobs.values()
    work(lease_seconds=1000)
    assert ended(place, lost).status == "succeeded"
    assert place.queue.get(kept).worker == elsewhere


def test_a_worker_that_counts_keeps_its_job_however_long_it_takes(place, submit, work, launcher):
    job = submit()
    claimed = place.queue.claim("elsewhere-1")
    work(lease_seconds=0.2)
    for _ in range(100):
        place.queue.beat(job, claimed.attempt)
        threading.Event().wait(0.01)
    assert place.queue.get(job).attempt == claimed.attempt
    assert launcher.started == []
    wait_until(lambda: place.queue.get(job).attempt > claimed.attempt)


@pytest.mark.parametrize(
    "error", [Unavailable("The database is gone."), StorageFull("The disk is full.")]
)
def test_while_the_database_is_gone_or_full_the_run_goes_on(
    place, submit, work, launcher, monkeypatch, error
):
    launcher.codes = [None]
    job = submit()
    work()
    wait_until(lambda: place.queue.get(job).handle)
    real, missed = place.queue.beat, []

    def gone(*arguments, **options):
        if len(missed) < 3:
            missed.append(1)
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(JobQueue, "beat", lambda self, *a, **o: gone(*a, **o))
    wait_until(lambda: len(missed) == 3)
    launcher.ends["run-0"] = ExitCode.DONE
    done = ended(place, job)
    assert (done.status, done.attempt) == ("succeeded", 1)


def test_a_run_that_finds_no_room_to_start_waits_however_often(
    place, submit, work, launcher, monkeypatch
):
    monkeypatch.setattr("service.jobs.worker._UNAVAILABLE_SECONDS", 0.01)
    real, refused = launcher.start, []

    def start(run):
        if len(refused) < 4:
            refused.append(run)
            raise StorageFull("The disk is full.")
        return real(run)

    monkeypatch.setattr(launcher, "start", start)
    job = submit()
    work()
    done = ended(place, job)
    assert (done.status, done.num_failures, len(refused)) == ("succeeded", 0, 4)


def test_what_is_old_is_forgotten_but_not_what_is_needed(place, submit, work, tmp_path):
    old = submit()
    worker, thread = work()
    ended(place, old)
    worker.stop()
    thread.join(30)
    waiting = submit()
    needed = place.queue.get(waiting).order.training_file
    estimate = tmp_path / "estimate.json"
    estimate.write_text("{}")
    place.objects.put(estimate, "estimates/one.json")
    Retention(job_days=1).collect(place.queue, place.files, place.objects, place.home)
    assert place.objects.get("estimates/one.json", estimate)
    Retention(job_days=1e-9, file_days=1e-9).collect(
        place.queue, place.files, place.objects, place.home
    )
    assert [job.id for job in place.queue.list_jobs()] == [waiting]
    assert not (place.home / "jobs" / old).exists()
    assert not place.objects.get("estimates/one.json", estimate)
    assert place.files.get(needed).id == needed
    place.queue.cancel(waiting)
    Retention(job_days=1, file_days=1e-9).collect(
        place.queue, place.files, place.objects, place.home
    )
    assert place.files.list_files() == []
    assert place.files.sent_before(now() + timedelta(days=1)) == []
    assert [job.id for job in place.queue.list_jobs()] == [waiting]


def test_what_the_store_does_not_let_go_of_does_not_keep_the_rest(place, submit, work, monkeypatch):
    jobs = [submit() for _ in range(2)]
    worker, thread = work()
    for job in jobs:
        ended(place, job)
    worker.stop()
    thread.join(30)
    real, refused = place.objects.remove, []

    def remove(objects, key):
        if not refused:
            refused.append(key)
            raise Unavailable("The store is gone.")
        real(key)

    monkeypatch.setattr(ObjectStore, "remove", remove)
    Retention(job_days=1e-9).collect(place.queue, place.files, place.objects, place.home)
    assert place.queue.list_jobs() == []
    kept = [job for job in jobs if any(job in key for key in place.objects.list_keys())]
    assert [f"jobs/{job}" for job in kept] == refused
    assert list((place.home / "jobs").iterdir()) == []


def test_a_worker_goes_on_when_what_is_old_can_not_be_removed(place, submit, work, monkeypatch):
    looked = []

    def broken(*_):
        looked.append(1)
        raise PermissionError("The folder is another user's.")

    monkeypatch.setattr(Retention, "collect", broken)
    job = submit()
    work()
    assert ended(place, job).status == "succeeded"
    assert len(looked) == 1


def test_a_cancelled_run_is_ended_at_once_and_leaves_nothing(place, submit, work, launcher):
    launcher.codes = [None]
    job = submit()
    work()
    wait_until(lambda: place.queue.get(job).handle)
    place.queue.cancel(job)
    assert ended(place, job).status == "cancelled"
    assert launcher.stopped == [True]
    wait_until(lambda: not (place.home / "jobs" / job).exists())


def test_the_log_of_a_job_that_is_given_up_is_kept(place, submit, work, launcher, tmp_path):
    launcher.codes = [-11] * 9
    job = submit()
    work()
    assert ended(place, job).status == "failed"
    assert place.objects.get(f"jobs/{job}/log.txt", tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "last words\n"
    wait_until(lambda: not (place.home / "jobs" / job / "data").exists())


def test_a_job_that_is_cancelled_while_it_stops_for_a_pause_is_cancelled(
    place, submit, work, launcher
):
    launcher.codes, launcher.heeds_stop = [None], False
    job = submit()
    work()
    wait_until(lambda: launcher.started and place.queue.get(job).handle)
    place.queue.pause(job)
    wait_until(lambda: launcher.stopped)  # it saves its checkpoint now
    place.queue.cancel(job)
    launcher.ends["run-0"] = ExitCode.PAUSED
    assert ended(place, job).status == "cancelled"
    wait_until(lambda: launcher.forgotten)
    wait_until(lambda: not launcher.started[0].folder.exists())
