"""API keys: who has none is refused, each sees its own namespace, scopes bound what it may do."""

import io
import os
import subprocess
import sys
import tarfile

import httpx
import pytest

from service.demo import free_port
from tests.jobs import write_films
from tests.servers import ROOT, running_server, wait_until


def keys(home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "keys", *arguments, "--home", str(home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("keys-home")


@pytest.fixture(scope="module")
def secrets(home):
    wanted = {
        "reader": ("predict", "blue"),
        "writer": ("predict,adapters:write", "blue"),
        "trainer": ("jobs", "blue", "--max-jobs", "1"),
        "stranger": ("admin", "red"),
        "short": ("admin", "blue", "--days", "0.0000001"),
    }
    return {
        name: keys(home, "create", name, "--scopes", scopes, "--namespace", namespace, *more)
        for name, (scopes, namespace, *more) in wanted.items()
    }


@pytest.fixture(scope="module")
def url(home, secrets, decoder_folder):
    with running_server(
        home, str(decoder_folder), dtype="float32", require_keys=True, job_workers=0
    ) as (client, _):
        yield str(client._http.base_url)


@pytest.fixture
def call(url, secrets):
    def send(who, method, path, **options):
        headers = {} if who is None else {"Authorization": f"Bearer {secrets.get(who, who)}"}
        with httpx.Client(base_url=url, timeout=60) as http:
            return http.request(method, path, headers=headers, **options)

    return send


def upload(call, who, bundle, name="labels"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in bundle.iterdir():
            tar.add(path, arcname=path.name)
    return call(who, "POST", "/v1/adapters", params={"name": name}, content=buffer.getvalue())


@pytest.mark.parametrize("who", [None, "nonsense", "hs-0-0", "short"])
def test_without_a_valid_key_nothing_is_told(call, who):
    response = call(who, "GET", "/v1/adapters")
    assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert call(who, "GET", "/health").status_code == 200


def test_each_key_does_what_its_scopes_allow_in_its_namespace(call, bundles):
    assert upload(call, "reader", bundles / "labels").status_code == 403
    assert upload(call, "trainer", bundles / "labels").status_code == 403
    assert upload(call, "writer", bundles / "labels").status_code == 201
    body = {"adapter": "labels", "inputs": ["x"]}
    assert call("reader", "POST", "/v1/predict", json=body).json()["predictions"][0]["version"] == 1
    names = [a["name"] for a in call("reader", "GET", "/v1/adapters").json()["adapters"]]
    assert names == ["labels"]


def test_another_namespace_is_not_there(call, bundles):
    upload(call, "writer", bundles / "labels", "mine")
    assert call("stranger", "GET", "/v1/adapters").json()["adapters"] == []
    assert call("stranger", "GET", "/v1/adapters/mine").status_code == 404
    assert call("stranger", "DELETE", "/v1/adapters/mine").status_code == 404
    for reference in ("mine", "blue/mine"):
        body = {"adapter": reference, "inputs": ["x"]}
        assert call("stranger", "POST", "/v1/predict", json=body).status_code == 404


def test_files_and_jobs_are_their_namespace_s(call, tmp_path):
    path = write_films(tmp_path / "films.jsonl")
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": path.open("rb")}}
    file = call("trainer", "POST", "/v1/files", **form).json()
    order = {"model": "tiny-llama", "training_file": file["id"]}
    assert call("reader", "POST", "/v1/fine_tuning/jobs", json=order).status_code == 403
    job = call("trainer", "POST", "/v1/fine_tuning/jobs", json=order).json()
    assert job["status"] == "queued"
    more = call("trainer", "POST", "/v1/fine_tuning/jobs", json=order)
    assert (more.status_code, more.json()["error"]["code"]) == (429, "overloaded")
    for path in (f"/v1/files/{file['id']}", f"/v1/fine_tuning/jobs/{job['id']}"):
        assert call("stranger", "GET", path).status_code == 404
        assert call("trainer", "GET", path).status_code == 200
    refused = call("stranger", "POST", "/v1/fine_tuning/jobs", json=order)
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "training_file")


def test_a_revoked_key_is_refused_within_moments(call, home):
    secret = keys(home, "create", "gone", "--scopes", "admin")
    assert call(secret, "GET", "/v1/adapters").status_code == 200
    (line,) = [line for line in keys(home, "list").splitlines() if " gone " in line]
    assert secret not in line
    keys(home, "revoke", line.split()[0])
    wait_until(lambda: call(secret, "GET", "/v1/adapters").status_code == 401)


def test_other_addresses_are_not_served_without_keys(tmp_path, decoder_folder):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "service.cli",
            "serve",
            "--host",
            "0.0.0.0",
            "--port",
            str(free_port()),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "HEADSTOCK_HOME": str(tmp_path),
            "HEADSTOCK_BACKBONE": str(decoder_folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "headstock keys create" in done.stderr
