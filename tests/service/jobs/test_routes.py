"""Orders over HTTP, without an engine behind them."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import add_error_handlers
from service.jobs.files import Files
from service.jobs.intake import Intake
from service.jobs.objects import ObjectStore
from service.launchers.process import ProcessLauncher
from service.routes.files import files_router
from service.routes.jobs import jobs_router
from service.settings import Settings
from tests.jobs import ORDER, write_films
from tests.registries import open_registry


@pytest.fixture
def client(database, queue, stores, decoder_spec):
    objects = ObjectStore(stores.blob_url)
    files, settings = Files(database, objects), Settings(max_active_jobs=1)
    registry = open_registry(stores, decoder_spec)
    intake = Intake(registry, files, {"process": ProcessLauncher()}, "process")
    app = FastAPI()
    app.include_router(files_router(files, settings))
    app.include_router(jobs_router(queue, intake, None, settings, lambda: False))
    add_error_handlers(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def order(client, tmp_path):
    path = write_films(tmp_path / "films.jsonl")
    sent = client.post("/v1/files", files={"file": path.open("rb")}, data={"purpose": "fine-tune"})
    return {**ORDER, "training_file": sent.json()["id"]}


def test_an_order_sent_again_gives_its_job_though_its_file_is_gone_and_the_quota_is_full(
    client, order
):
    def send(**changes):
        headers = {"Idempotency-Key": "once"}
        return client.post("/v1/fine_tuning/jobs", json={**order, **changes}, headers=headers)

    job = send().json()["id"]
    assert send().json()["id"] == job
    client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    assert client.delete(f"/v1/files/{order['training_file']}").status_code == 200
    again = send()
    assert (again.status_code, again.json().get("id")) == (200, job), again.json()
    other = send(seed=5)
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
