"""Whoever is killed at a random moment of a job, round after round; every job must end once, with the same adapter.

FAULT_ROUNDS says how often; few in the tests, for each takes as long as a run and two starts of a server.
"""

import contextlib
import os
import random
from pathlib import Path

import psutil

from tests.jobs import ended, submit, told, trainer_of, worker_of, write_films
from tests.servers import wait_until

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
FAULTY = {"epochs": 40, "checkpoint_seconds": 0.1}


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
            job = submit(client, films, f"round-{i}", training=FAULTY)
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
