"""Jobs survive what dies: workers, runs and the server are killed at random points, and every job ends once, rightly.

FAULT_ROUNDS says how often; few here, for each takes as long as a run.
"""

import contextlib
import os
import random
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.test_jobs import write_films
from tests.servers import children_of, running_server, wait_until

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
ORDER = {
    "model": "tiny-llama",
    "task": {"test_share": 0.25},
    "training": {"epochs": 40, "batch_tokens": 64, "must_learn": False, "checkpoint_seconds": 0.1},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("faults-home")
    with running_server(home, str(decoder_folder), dtype="float32") as running:
        yield running


@pytest.fixture(scope="module")
def films(server, tmp_path_factory):
    path = write_films(tmp_path_factory.mktemp("films") / "films.jsonl")
    return server[0].create_file(path)["id"]


def submit(client, films, name, **training):
    order = {**ORDER, "training_file": films, "register": {"name": name}}
    return client.create_job({**order, "training": {**ORDER["training"], **training}})["id"]


def runs_of(job):
    """Return the processes that work in a job's folder: shepherd, run, and what it started."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(job in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def trainer_of(job):
    return next((p for p in runs_of(job) if p.cmdline()[1:3] == ["-m", "training"]), None)


def worker_of(process):
    return next((c for c in children_of(process) if c.cmdline()[-1:] == ["worker"]), None)


def ended(client, job):
    def look():
        found = client.get_job(job)
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, seconds=240)


def told(client, job):
    return [event["message"] for event in client.job_events(job)]


def test_a_run_outlives_its_worker_and_is_found_again(server, films):
    client, process = server
    job = submit(client, films, "outlives")
    run = wait_until(lambda: trainer_of(job))
    group = Path(f"/proc/{run.pid}/autogroup")
    assert run.nice() >= 15
    assert not group.exists() or group.read_text().split()[-1] == "19"
    worker_of(process).kill()
    done = ended(client, job)
    assert done["status"] == "succeeded", done["error"]
    assert any("another one takes over" in message for message in told(client, job))
    assert run.pid not in psutil.pids() or not run.is_running()
    assert client.get_adapter("outlives")["latest_version"] == 1


def test_a_run_that_is_killed_goes_on_from_its_checkpoint_to_the_same_adapter(server, films):
    client, _ = server
    digests = []
    for name, dies in (("whole", False), ("killed", True)):
        job = submit(client, films, name)
        if dies:
            wait_until(lambda j=job: (client.get_job(j)["progress"] or {}).get("done", 0) > 3)
            trainer_of(job).kill()
        done = ended(client, job)
        assert done["status"] == "succeeded", done["error"]
        assert done["attempt"] == 1 + dies
        digests.append(client.get_adapter(name)["versions"][0]["digest"])
    assert digests[0] == digests[1]


def test_a_run_that_dies_each_time_ends_its_job(server, films):
    client, _ = server
    job = submit(client, films, "hopeless", epochs=4000)

    def kill():
        trainer = trainer_of(job)
        if trainer is not None:
            trainer.kill()
        return client.get_job(job)["status"] == "failed"

    wait_until(kill, seconds=120)
    assert client.get_job(job)["error"]["code"] == "worker_lost"
    assert runs_of(job) == []


def test_whoever_is_killed_when_each_job_ends_once(tmp_path, decoder_folder):
    home = tmp_path / "home"

    def serve():
        return running_server(home, str(decoder_folder), dtype="float32")

    survive(serve, home, tmp_path, VICTIMS)


def kill(process):
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.kill()


# Whom to kill, by name, of a server's process and a job.
VICTIMS = {
    "server": lambda server, job: kill(server),
    "worker": lambda server, job: kill(worker_of(server)),
    "run": lambda server, job: kill(trainer_of(job)),
}


def survive(serve, home, tmp_path, victims, rounds=ROUNDS):
    """Kill somebody at a random moment of a job, time and again; all jobs end once, with the same right adapter."""
    chance = random.Random(0)
    jobs = []
    for i in range(rounds):
        with serve() as (client, process):
            if not jobs:
                films = client.create_file(write_films(tmp_path / "films.jsonl"))["id"]
            job = submit(client, films, f"round-{i}")
            jobs.append(job)
            wait_until(lambda c=client, j=job: c.get_job(j)["status"] == "running")
            steps = chance.randrange(12)
            wait_until(lambda c=client, j=job, n=steps: _done(c, j) >= n, seconds=120)
            victim = chance.choice(sorted(victims))
            victims[victim](process, job)
            if victim != "server":
                ended(client, job)
        # The worker of a killed server stops by itself, with its run.
        wait_until(lambda: not _alive(home), seconds=90)
    with serve() as (client, _):
        for i, job in enumerate(jobs):
            done = ended(client, job)
            assert done["status"] == "succeeded", (i, done["error"], told(client, job))
            assert done["fine_tuned_model"] == f"round-{i}:1"
            assert sum(m.startswith("Registered") for m in told(client, job)) == 1
        digests = {client.get_adapter(f"round-{i}")["versions"][0]["digest"] for i in range(rounds)}
        assert len(digests) == 1
        assert client.predict("round-0", "a good film")
    wait_until(lambda: not _alive(home))


def _done(client, job):
    found = client.get_job(job)
    ended = found["status"] not in ("queued", "running")
    return 10**9 if ended else (found["progress"] or {}).get("done", 0)


def _alive(home: Path):
    """Return the processes whose home this is: nothing may be left when the server is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("HEADSTOCK_HOME") == str(home) and process.status() != "zombie":
            found.append(process)
    return found
