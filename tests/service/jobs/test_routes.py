"""Files, jobs and adapters over HTTP, without an engine behind them."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import add_error_handlers
from service.jobs.files import Files
from service.jobs.intake import Intake
from service.jobs.objects import ObjectStore
from service.jobs.tables import JobTable
from service.launchers.process import ProcessLauncher
from service.limits import Gatekeeper, Traffic
from service.routes.adapters import adapters_router
from service.routes.aliases import aliases_router
from service.routes.files import files_router
from service.routes.jobs import jobs_router
from service.settings import Settings
from service.submissions import Submissions
from tests.jobs import ORDER, write_films
from tests.registries import open_registry


@pytest.fixture
def called():
    """How often workers were called."""
    return []


@pytest.fixture
def client(database, queue, stores, decoder_spec, called):
    objects = ObjectStore(stores.blob_url)
    files, settings = Files(database, objects), Settings(max_active_jobs=1)
    registry = open_registry(stores, decoder_spec)
    intake = Intake(registry, files, {"process": ProcessLauncher()}, "process")
    app = FastAPI()
    app.include_router(files_router(files, settings, lambda: called.append(1)))
    app.include_router(
        jobs_router(queue, intake, None, settings, lambda: False, lambda: called.append(1))
    )
    app.include_router(adapters_router(registry, Submissions(registry, queue, settings)))
    app.include_router(aliases_router(registry))
    add_error_handlers(app)
    app.add_middleware(Gatekeeper, settings.max_body_bytes, Traffic())
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


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fine_tuning/jobs/a%00b",
        "/v1/fine_tuning/jobs/a%00b/events",
        "/v1/fine_tuning/jobs?after=a%00b",
        "/v1/files/a%00b",
        "/v1/files?after=a%00b",
        "/v1/files?purpose=a%00b",
        "/v1/adapters?after=a%00b",
        "/v1/adapters/a%00b",
        "/v1/adapters/a%00b/versions/1",
        "/v1/adapters/a/aliases/a%00b",
    ],
)
def test_an_address_with_a_nul_is_refused(client, path):
    answer = client.get(path)
    assert answer.status_code == 400
    assert "U+0000" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "a\0b"),
        ("training_file", "file-\0"),
        ("metadata.a", "\0"),
        ("register.note", "first\0"),
        ("task.options.a", ["\0"]),
    ],
)
def test_an_order_with_a_nul_is_refused_by_its_field(client, field, value):
    body = {"model": "tiny-llama", "training_file": "file-1"}
    for name in reversed(field.split(".")):
        value = {name: value}
    answer = client.post("/v1/fine_tuning/jobs", json=body | value)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "U+0000" in error["message"]
    assert error["param"].startswith(field)


def test_workers_are_called_before_there_is_a_job_for_them(client, order, called):
    assert len(called) == 1  # by its file
    job = client.post("/v1/fine_tuning/jobs", json=order).json()["id"]
    assert len(called) == 2
    for act in ("pause", "resume"):
        client.post(f"/v1/fine_tuning/jobs/{job}/{act}")
    assert len(called) == 3


def test_a_job_that_another_version_has_stored_stands_in_the_list(client, order, database):
    job = client.post("/v1/fine_tuning/jobs", json=order).json()
    assert job["unread"] is None
    with database.write() as session:
        row = session.query(JobTable).one()
        row.order = {**row.order, "nodes": 4}
    (listed,) = client.get("/v1/fine_tuning/jobs").json()["data"]
    assert listed.pop("unread") == "unknown field 'nodes'. Leave it out, or check its spelling."
    assert listed == {name: value for name, value in job.items() if name != "unread"}
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").status_code == 200
