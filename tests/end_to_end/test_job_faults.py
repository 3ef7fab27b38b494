"""Jobs survive what dies: workers, runs and the server are killed, and every job ends once, rightly."""

from pathlib import Path

import psutil
import pytest

from tests.faults import FAULTY, VICTIMS, survive
from tests.jobs import LONG, ended, is_training, runs_of, submit, told, trainer_of, worker_of
from tests.servers import running_server, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("faults-home")
    with running_server(home, str(decoder_folder), dtype="float32") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def test_a_run_outlives_its_worker_and_is_found_again(server, client, films):
    job = submit(client, films, "outlives", training=FAULTY)
    run = wait_until(lambda: trainer_of(job))
    group = Path(f"/proc/{run.pid}/autogroup")
    assert run.nice() >= 15
    assert not group.exists() or group.read_text().split()[-1] == "19"
    worker_of(server[1]).kill()
    done = ended(client, job)
    assert done["status"] == "succeeded", done["error"]
    assert any("another one takes over" in message for message in told(client, job))
    assert run.pid not in psutil.pids() or not run.is_running()
    assert client.get_adapter("outlives")["latest_version"] == 1


def test_a_run_that_is_killed_goes_on_from_its_checkpoint_to_the_same_adapter(client, films):
    digests = []
    for name, dies in (("whole", False), ("killed", True)):
        job = submit(client, films, name, training=FAULTY)
        if dies:
            is_training(client, job)
            trainer_of(job).kill()
        done = ended(client, job)
        assert done["status"] == "succeeded", done["error"]
        assert done["attempt"] == 1 + dies
        digests.append(client.get_adapter(name)["versions"][0]["digest"])
    assert digests[0] == digests[1]


def test_a_run_that_dies_each_time_ends_its_job(client, films):
    job = submit(client, films, "hopeless", training=LONG)

    def kill():
        trainer = trainer_of(job)
        if trainer is not None:
            trainer.kill()
        return client.get_job(job)["status"] == "failed"

    wait_until(kill, seconds=120)
    assert client.get_job(job)["error"]["code"] == "worker_lost"
    assert runs_of(job) == []


@pytest.mark.timeout(3600)
def test_whoever_is_killed_when_each_job_ends_once(tmp_path, decoder_folder):
    home = tmp_path / "home"

    def serve():
        return running_server(home, str(decoder_folder), dtype="float32")

    survive(serve, home, tmp_path, VICTIMS)
