"""Jobs on a Ray cluster of several nodes: one process, and one fit over two; a node lost in the middle."""

import json
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from adapters.errors import Unavailable
from service.launchers import ray
from service.launchers.base import GONE
from tests.backends.ray_nodes import running_nodes, skip_unless_nodes_can_be_had
from tests.gates import Gate
from tests.jobs import LONG, ended, goes_on_from_a_parent, is_training, submit, told, worker_of
from tests.servers import running_server, wait_until

pytestmark = pytest.mark.timeout(600)  # the first starts the nodes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    skip_unless_nodes_can_be_had()
    with running_nodes(tmp_path_factory.mktemp("nodes"), cpus=(1, 1)) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(cluster):
    return cluster[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("ray-home")
    shutil.copytree(decoder_folder, home / "tiny-llama")
    return home


@pytest.fixture(scope="module")
def server(home, cluster):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        settings = {"ray_address": cluster[1], "job_launcher": "ray"}
        backbone = str(home / "tiny-llama")
        with running_server(home, backbone, dtype="float32", **settings) as running:
            yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def is_on(nodes, number, job):
    """Tell whether a node runs one of a job's processes."""
    for pid in nodes.pids(number):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if command[1:3] == ["-m", "training"] and any(job in part for part in command):
            return True
    return False


def test_a_job_runs_on_a_node_and_its_adapter_is_served(client, films):
    job = submit(client, films, "films")
    done = ended(client, job)
    assert done["status"] == "succeeded", (done, told(client, job))
    assert client.predict(done["fine_tuned_model"], "a good film")[0]["label"] in ("pos", "neg")


def test_a_run_on_a_node_goes_on_from_a_parent(client, films):
    goes_on_from_a_parent(client, films)


def test_a_run_outlives_its_worker_and_is_found_again(server, client, films, home):
    job = submit(client, films, "outlives", training={"epochs": 150})
    is_training(client, job)
    worker_of(server[1]).kill()
    assert ended(client, job)["status"] == "succeeded"
    events = (home / "jobs" / job / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(event)["kind"] == "started" for event in events) == 1


def test_a_paused_run_saves_a_checkpoint_and_goes_on(client, films, home):
    job = submit(client, films, "paused", training={**LONG, "checkpoint_seconds": 600})
    is_training(client, job)
    client.change_job(job, "pause")
    wait_until(lambda: client.get_job(job)["paused"], seconds=60)
    assert (home / "jobs" / job / "checkpoint.safetensors").is_file()
    client.change_job(job, "resume")
    wait_until(lambda: any("checkpoint" in line for line in told(client, job)[-4:]), seconds=120)
    client.change_job(job, "cancel")
    assert ended(client, job)["status"] == "cancelled"


@pytest.mark.timeout(900)
def test_a_fit_over_two_nodes_outlives_one_of_them(client, nodes, films):
    digests = []
    training = {"epochs": 40, "checkpoint_seconds": 0.2}
    for name, dies in (("whole", False), ("bereft", True)):
        job = submit(client, films, name, training=training, resources={"workers": 2})
        if dies:
            is_training(client, job)
            assert is_on(nodes, 2, job)
            assert is_on(nodes, 3, job)
            nodes.kill(3)
            nodes.start(4, 1)
        done = ended(client, job)
        assert (done["status"], done["attempt"]) == ("succeeded", 1 + dies), told(client, job)
        digests.append(client.get_adapter(name)["versions"][0]["digest"])
    assert digests[0] == digests[1]


def test_a_run_that_waits_for_room_can_be_cancelled(client, films):
    job = submit(client, films, "roomy", resources={"threads": 3})  # no node has as many
    wait_until(lambda: client.get_job(job)["status"] == "running", seconds=60)
    client.change_job(job, "cancel")
    assert ended(client, job)["status"] == "cancelled"


def test_a_head_that_hangs_is_not_waited_for_longer_than_a_bound(cluster, monkeypatch):
    head = urlsplit(cluster[1])
    gate = Gate(head.hostname, head.port)
    monkeypatch.setattr(ray, "_TIMEOUT_SECONDS", (1.0, 1.0))
    launcher = ray.RayLauncher(f"http://127.0.0.1:{gate.port}")
    assert launcher.exit_code({"name": "never-was"}) == GONE
    try:
        with gate.hanging():
            begin = time.monotonic()
            assert launcher.exit_code({"name": "never-was"}) is None
            with pytest.raises(Unavailable, match="Ray at 'http"):
                launcher.stop({"name": "never-was"})
            assert time.monotonic() - begin < 20
    finally:
        gate.shut()
