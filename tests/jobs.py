"""Jobs that tests order over HTTP: a small one to tell films apart, its processes, and what becomes of it."""

import json

import psutil

from tests.servers import children_of, wait_until

ORDER = {
    "model": "tiny-llama",
    "task": {"test_share": 0.25},
    "training": {"epochs": 2, "batch_tokens": 64, "must_learn": False},
}
LONG = {"epochs": 4000, "checkpoint_seconds": 0.2}  # goes on until somebody ends it


def write_films(path, rows=24):
    lines = [
        {"text": f"a {word} film, number {i}", "label": label}
        for i in range(rows // 2)
        for word, label in (("good", "pos"), ("bad", "neg"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def submit(client, films, name, *, training=None, **more):
    """Order a job that registers its adapter by a name; return its id."""
    training = {**ORDER["training"], **(training or {})}
    order = {**ORDER, "training_file": films, "register": {"name": name}, "training": training}
    return client.create_job({**order, **more})["id"]


def is_training(client, job):
    def look():
        found = client.get_job(job)
        assert found["status"] in ("queued", "running"), found
        return (found["progress"] or {}).get("done", 0) > 3

    return wait_until(look, seconds=120)


def ended(client, job):
    def look():
        found = client.get_job(job)
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, seconds=240)


def told(client, job):
    return [event["message"] for event in client.job_events(job)]


def goes_on_from_a_parent(client, films):
    """Order a job, and another that goes on from what it made; what that one makes names its parent."""
    parent = ended(client, submit(client, films, "parent"))["fine_tuned_model"]
    done = ended(client, submit(client, films, "child", model=parent))
    assert done["status"] == "succeeded", (done, told(client, done["id"]))
    first, second = (client.get_version(name, 1) for name in ("parent", "child"))
    assert second["manifest"]["lineage"]["parent"] == first["digest"] != second["digest"]


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
    return next((c for c in children_of(process) if c.cmdline()[3:4] == ["worker"]), None)
