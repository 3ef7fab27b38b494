"""The store is slow, or gone, or the database is: adapters that are here are served on, and nothing is half done."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from adapters.backbone import describe_backbone
from service.client import ClientError
from service.demo import free_port
from tests.backends.conftest import running_s3
from tests.bundles import classifier, save_bundle
from tests.gates import Gate
from tests.servers import ROOT, running_server, wait_until

NUM_UPLOADS = 12  # more than asyncio has threads of its own here


@pytest.fixture(scope="module")
def gates(postgres, s3):
    """Ways to the store and to the database."""
    store, database = urlsplit(os.environ["AWS_ENDPOINT_URL"]), urlsplit(postgres.url())
    made = Gate(store.hostname, store.port), Gate(database.hostname, database.port)
    yield made
    for gate in made:
        gate.shut()


@pytest.fixture(scope="module")
def client(tmp_path_factory, decoder_folder, postgres, s3, gates):
    to_store, to_database = gates
    url = postgres.new_database().replace(f":{postgres.port}/", f":{to_database.port}/")
    settings = {"database_url": url, "blob_url": f"s3://{s3}/faults", "job_workers": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{to_store.port}")
        home = tmp_path_factory.mktemp("faults-home")
        with running_server(home, str(decoder_folder), dtype="float32", **settings) as (client, _):
            yield client


@pytest.fixture(scope="module")
def folders(tmp_path_factory, decoder_folder):
    spec, made = describe_backbone(decoder_folder), []
    for seed in range(NUM_UPLOADS + 3):
        made.append(tmp_path_factory.mktemp("bundle") / "b")
        save_bundle(made[-1], spec, classifier(2), seed=seed)
    return made


def scores(client, adapter):
    return client.predict(adapter, "a good film")[0]["scores"]


def test_a_store_that_hangs_holds_no_prediction_up(client, gates, folders):
    client.create_version("here", folders[0])
    before = scores(client, "here")
    with ThreadPoolExecutor(NUM_UPLOADS) as pool:
        with gates[0].hanging():
            names = [f"late-{i}" for i in range(NUM_UPLOADS)]
            uploads = [
                pool.submit(client.create_version, name, folder)
                for name, folder in zip(names, folders[1:], strict=False)
            ]
            for _ in range(20):
                assert scores(client, "here") == before
            assert not any(upload.done() for upload in uploads)
        assert [upload.result()["version"] for upload in uploads] == [1] * NUM_UPLOADS
    for name in names:
        assert scores(client, name)


def test_without_the_store_resident_adapters_are_served_and_others_refused(client, gates, folders):
    client.create_version("cold", folders[-2])
    before = scores(client, "here")
    gates[0].shut()
    try:
        assert scores(client, "here") == before
        for refused in (
            lambda: client.predict("cold", "a good film"),
            lambda: client.create_version("new", folders[-1]),
        ):
            with pytest.raises(ClientError) as caught:
                refused()
            assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert scores(client, "here") == before
    finally:
        gates[0].open()
    assert scores(client, "cold")
    with pytest.raises(ClientError, match="No adapter named 'new'"):
        client.get_adapter("new")
    assert client.create_version("new", folders[-1])["version"] == 1


def is_written(client):
    try:
        client.set_alias("here", "production", 1)
    except ClientError:
        return False
    return True


def test_without_the_database_known_adapters_are_served_and_writes_refused(client, gates, folders):
    before = scores(client, "here")
    gates[1].shut()
    try:
        assert scores(client, "here") == before
        with pytest.raises(ClientError) as caught:
            client.set_alias("here", "production", 1)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
    finally:
        gates[1].open()
    wait_until(lambda: is_written(client))
    assert scores(client, "here") == before


@pytest.mark.parametrize("command", ["worker", "serve"])
def test_credentials_that_the_store_refuses_end_a_process_at_its_start(tmp_path, command):
    with running_s3(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0"):
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", command],
            cwd=ROOT,
            env={
                **os.environ,
                "HEADSTOCK_BLOB_URL": "s3://bundles/refused",
                "HEADSTOCK_PORT": str(free_port()),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert "'bundles/refused' can't be used: Perm" in done.stderr.splitlines()[-1]
