"""Pages on the web, which browsers let send uploads to this machine, change nothing on a server without keys."""

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.pages import LocalPages


@pytest.fixture
def client():
    app = FastAPI()

    @app.api_route("/v1/adapters", methods=["GET", "POST", "DELETE"])
    def anything() -> str:
        return "done"

    app.add_middleware(LocalPages)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost.evil.example", "http://[", "file://", ""],
)
def test_what_a_page_from_elsewhere_sends_is_refused(client, origin):
    for method in ("POST", "DELETE"):
        answer = client.request(method, "/v1/adapters", headers={"Origin": origin})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "forbidden"
    assert client.get("/v1/adapters", headers={"Origin": origin}).json() == "done"


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]"]
)
def test_programs_and_pages_of_this_machine_may_send(client, origin):
    assert client.post("/v1/adapters").json() == "done"
    assert client.post("/v1/adapters", headers={"Origin": origin}).json() == "done"
