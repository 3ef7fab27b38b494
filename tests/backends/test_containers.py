"""Training jobs in real containers, from an HTTP request to an adapter that is served."""

import contextlib
import shutil

import docker
import pytest

from service.client import ClientError
from tests.backends.containers import docker_host, images  # noqa: F401
from tests.faults import ROUNDS, VICTIMS, survive
from tests.jobs import LONG, ended, goes_on_from_a_parent, is_training, submit, told, worker_of
from tests.servers import running_server, wait_until

MIB = 2**20
pytestmark = pytest.mark.timeout(900)  # the first builds the images


@pytest.fixture(scope="module")
def client_of_docker(docker_host):  # noqa: F811
    client = docker.DockerClient(base_url=docker_host)
    yield client
    client.close()


@pytest.fixture(scope="module")
def serve(docker_host, images, decoder_folder):  # noqa: F811
    """Give what starts a server whose jobs run in containers, on a home folder."""

    def start(home):
        backbone = home / "tiny-llama"
        if not backbone.exists():
            shutil.copytree(decoder_folder, backbone, copy_function=shutil.copyfile)  # for all
        settings = {"container_image": images["train"], "job_launcher": "container"}
        return running_server(home, str(backbone), dtype="float32", **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", docker_host)
        yield start


@pytest.fixture(scope="module")
def server(tmp_path_factory, serve):
    with serve(tmp_path_factory.mktemp("container-home")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def containers_of(client_of_docker, job):
    wanted = {"label": f"headstock.job={job}"}
    return client_of_docker.containers.list(all=True, filters=wanted, ignore_removed=True)


def test_a_job_runs_in_a_container_and_its_adapter_is_served(client, client_of_docker, films):
    job = submit(client, films, "films", resources={"memory_bytes": 2048 * MIB, "threads": 1})
    (found,) = wait_until(lambda: containers_of(client_of_docker, job), seconds=60)
    held, user = found.attrs["HostConfig"], found.attrs["Config"]["User"]
    assert (held["NetworkMode"], held["ReadonlyRootfs"]) == ("none", True)
    assert (held["Memory"], held["NanoCpus"]) == (2048 * MIB, 10**9)
    assert held["CapDrop"] == ["ALL"]
    assert not user.startswith("0")
    writable = [mount["Destination"] for mount in found.attrs["Mounts"] if mount["RW"]]
    assert [path.rpartition("/")[2] for path in writable] == [job]
    done = ended(client, job)
    assert done["status"] == "succeeded", done
    (prediction,) = client.predict(done["fine_tuned_model"], "a good film")
    assert prediction["label"] in ("pos", "neg")
    wait_until(lambda: not containers_of(client_of_docker, job))


def test_a_run_in_a_container_goes_on_from_a_parent(client, films):
    goes_on_from_a_parent(client, films)


def test_a_container_outlives_its_worker_and_is_found_again(
    server, client, client_of_docker, films
):
    job = submit(client, films, "outlives", training={"epochs": 150})
    is_training(client, job)
    (_,) = containers_of(client_of_docker, job)
    worker_of(server[1]).kill()
    done = ended(client, job)
    assert done["status"] == "succeeded", done
    assert not [line for line in told(client, job) if "again" in line]


def test_a_killed_container_s_job_goes_on_from_its_checkpoint(client, client_of_docker, films):
    training = {"epochs": 300, "checkpoint_seconds": 0.2}
    job = submit(client, films, "killed", training=training)
    is_training(client, job)
    (container,) = containers_of(client_of_docker, job)
    container.kill()
    done = ended(client, job)
    assert done["status"] == "succeeded", done
    assert any("code '137'" in line for line in told(client, job))


def test_a_container_is_stopped_on_cancel(client, client_of_docker, films):
    job = submit(client, films, "cancelled", training=LONG)
    is_training(client, job)
    client.change_job(job, "cancel")
    assert ended(client, job)["status"] == "cancelled"
    wait_until(lambda: not containers_of(client_of_docker, job))


def test_a_run_that_needs_more_memory_than_its_bound_is_told_so(client, client_of_docker, films):
    job = submit(client, films, "small", resources={"memory_bytes": 64 * MIB})
    done = ended(client, job)
    assert done["status"] == "failed"
    assert done["error"]["code"] == "out_of_memory"
    assert f"'{64 * MIB}'" in done["error"]["message"]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"memory_bytes": 2**50}, "resources.memory_bytes"),
        ({"threads": 1000}, "resources.threads"),
        ({"gpus": 1}, "resources.gpus"),
        ({"workers": 2}, "resources.workers"),
    ],
)
def test_what_the_machine_has_not_is_refused(client, films, resources, said):
    with pytest.raises(ClientError, match=said):
        submit(client, films, "refused", resources=resources)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    ROUNDS < 2, reason="a killed container is tested above; FAULT_ROUNDS asks for more."
)
def test_whoever_is_killed_each_job_ends_once(serve, client_of_docker, tmp_path):
    def kill_container(server, job):
        for container in containers_of(client_of_docker, job):
            with contextlib.suppress(docker.errors.APIError):
                container.kill()

    victims = {**VICTIMS, "run": kill_container}
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    survive(lambda: serve(home), home, tmp_path, victims)
    assert client_of_docker.containers.list() == []


EMBED = """
import sys, httpx
headers = {"Authorization": f"Bearer {sys.argv[1]}"}
body = {"model": "smollm2-135m-instruct", "input": "A wonderful film."}
answer = httpx.post("http://127.0.0.1:8000/v1/embeddings", json=body, headers=headers, timeout=60)
print(len(answer.raise_for_status().json()["data"][0]["embedding"]))
"""


def test_the_server_s_image_serves_the_default_backbone(client_of_docker, images):  # noqa: F811
    volume = client_of_docker.volumes.create()
    place = {volume.name: {"bind": "/var/lib/headstock", "mode": "rw"}}
    how = {"image": images["serve"], "volumes": place, "network_mode": "none"}
    make_key = ["headstock", "keys", "create", "first", "--scopes", "admin"]
    key = client_of_docker.containers.run(command=make_key, remove=True, **how).decode().strip()
    server = client_of_docker.containers.run(detach=True, **how)

    def is_healthy():
        server.reload()
        assert server.status == "running", server.logs().decode()[-4000:]
        return server.attrs["State"]["Health"]["Status"] == "healthy"

    try:
        wait_until(is_healthy, seconds=240)
        code, said = server.exec_run(["python", "-c", EMBED, key])
        assert (code, said.decode().strip()) == (0, "576")
        assert server.exec_run(["id", "-u"])[1].decode().strip() == "10001"
        server.stop(timeout=30)
        assert server.wait()["StatusCode"] == 0
    finally:
        server.remove(force=True)
        volume.remove()
