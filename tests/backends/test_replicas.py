"""Replicas over PostgreSQL and S3 behind nginx, with the configuration that deploy/ ships."""

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from adapters.backbone import describe_backbone
from service.client import Client, ClientError
from service.demo import free_port
from tests.backends.conftest import wait_for
from tests.bundles import classifier, save_bundle
from tests.servers import ROOT, running_server, wait_until

NUM_ADAPTERS = 12


@pytest.fixture(scope="module")
def replicas(tmp_path_factory, decoder_folder, postgres, s3):
    """Start two servers on one database and one store; gives clients and processes."""
    shared = {
        "database_url": postgres.new_database(),
        "blob_url": f"s3://{s3}/replicas",
        "dtype": "float32",
        "job_workers": 0,
    }
    with ExitStack() as stack:
        homes = [tmp_path_factory.mktemp("replica") for _ in range(2)]
        yield [
            stack.enter_context(running_server(home, str(decoder_folder), **shared))
            for home in homes
        ]


@pytest.fixture(scope="module")
def balancer(replicas, tmp_path_factory):
    """Start nginx with our configuration over the replicas; gives its URL."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is not installed (apt install nginx-light).")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    ours = (ROOT / "deploy" / "nginx" / "headstock.conf").read_text()
    assert "listen 8080;" in ours
    (folder / "headstock.conf").write_text(
        ours.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    )
    servers = [
        f"server 127.0.0.1:{c._http.base_url.port} max_fails=1 fail_timeout=2s;"
        for c, _ in replicas
    ]
    (folder / "upstreams.conf").write_text("\n".join(servers) + "\n")
    temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in temporary)
    (folder / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/log;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off;\n{paths}include headstock.conf; }}\n"
    )
    log = folder / "log"
    log.touch()
    process = subprocess.Popen(
        [nginx, "-c", folder / "nginx.conf", "-p", folder], stderr=log.open("a")
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(url), process, log)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url):
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def spec(decoder_folder):
    return describe_backbone(decoder_folder)


@pytest.fixture(scope="module")
def adapters(balancer, spec, tmp_path_factory):
    names = [f"adapter-{i}" for i in range(NUM_ADAPTERS)]
    with Client(balancer) as client:
        for seed, name in enumerate(names):
            folder = tmp_path_factory.mktemp("bundle") / "b"
            save_bundle(folder, spec, classifier(2), seed=seed)
            client.create_version(name, folder)
            client.set_alias(name, "production", 1)
    return names


def scores(client, adapter):
    (prediction,) = client.predict(adapter, "a good film")
    return prediction["scores"]


def test_a_version_registered_on_one_is_served_by_all(replicas, adapters):
    (left, _), (right, _) = replicas
    for name in adapters[:3]:
        assert scores(left, name) == pytest.approx(scores(right, name), abs=1e-5)


def test_an_alias_moved_on_one_moves_on_all_within_a_second(replicas, adapters, spec, tmp_path):
    (left, _), (right, _) = replicas
    before = scores(right, adapters[0])
    save_bundle(tmp_path / "new", spec, classifier(2), seed=99)
    left.create_version(adapters[0], tmp_path / "new")
    left.set_alias(adapters[0], "production", 2)
    wait_until(lambda: scores(right, adapters[0]) != before, seconds=1.5)
    assert scores(right, adapters[0]) == pytest.approx(scores(left, adapters[0]), abs=1e-5)


def test_an_adapter_s_calls_go_to_one_replica_and_adapters_to_both(balancer, adapters):
    def replica(name):
        body = {"adapter": name, "inputs": ["a film"]}
        headers = {"X-Headstock-Adapter": name}
        response = httpx.post(f"{balancer}/v1/predict", json=body, headers=headers)
        return response.raise_for_status().headers["X-Headstock-Replica"]

    served = {name: {replica(name) for _ in range(4)} for name in adapters}
    assert all(len(replicas) == 1 for replicas in served.values())
    assert len(set.union(*served.values())) == 2


def test_a_replica_killed_under_load_loses_nothing_for_clients_that_retry(
    replicas, balancer, adapters
):
    """The last test: one replica is gone afterwards."""
    calls, killed, lock = {"answered": 0, "lost": 0}, threading.Event(), threading.Lock()
    (_, victim), (survivor, _) = replicas
    expected = {name: scores(survivor, name) for name in adapters}

    def call(worker):
        with Client(balancer, retries=5) as client:
            for i in range(40):
                name = adapters[(worker + i) % len(adapters)]
                if worker == 0 and i == 10:
                    victim.kill()
                    killed.set()
                try:
                    found = scores(client, name)
                except ClientError:
                    found = None
                with lock:
                    is_right = found == pytest.approx(expected[name], abs=1e-5)
                    calls["answered" if is_right else "lost"] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert killed.is_set()
    assert calls == {"answered": 160, "lost": 0}
    assert survivor.is_healthy()
