"""The engine's process killed under a running server: calls in flight hear of it at once, and it comes back."""

import time

import psutil

from service.server import check_port
from tests.servers import (
    Callers,
    children_of,
    engine_of,
    long_call,
    running_server,
    wait_until,
    wait_until_at_work,
)
from tests.tiny import save_backbone


def test_a_killed_engine_answers_its_calls_with_503_and_comes_back(
    tmp_path, decoder_folder, bundles
):
    home = tmp_path / "home"
    with running_server(home, str(decoder_folder), dtype="float32") as (client, process):
        for name in ("summary", "labels"):
            client.create_version(name, bundles / name)
        before = client.predict("labels", "The sun.")
        engine = engine_of(process)
        callers = Callers(client)
        calls = [callers.post(long_call(rows=60)) for _ in range(8)]
        wait_until_at_work(client)
        begin = time.monotonic()
        engine.kill()
        for call in calls:
            assert_unavailable(call.result())
        assert_unavailable(client._http.post("/v1/predict", json=long_call(rows=1)))
        assert client._http.get("/health").status_code == 503
        assert time.monotonic() - begin < 3
        wait_until(client.is_healthy, seconds=120)
        assert process.poll() is None
        assert engine_of(process).pid != engine.pid
        assert client.predict("labels", "The sun.") == before
        assert Callers(client).post(long_call(rows=1)).result().status_code == 200
        children = children_of(process)
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert psutil.wait_procs(children, timeout=20)[1] == []


def assert_unavailable(response):
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"
    assert response.headers["Retry-After"] == "1"


def test_an_engine_that_can_not_start_again_ends_the_server(tmp_path):
    home, backbone = tmp_path / "home", save_backbone(tmp_path / "backbone")
    with running_server(home, str(backbone), dtype="float32") as (client, process):
        children = children_of(process)
        (backbone / "model.safetensors").unlink()
        engine_of(process).kill()
        assert process.wait(timeout=120) == 1
        assert psutil.wait_procs(children, timeout=20)[1] == []
        check_port("127.0.0.1", client._http.base_url.port)
    log = (home / "server.log").read_text()
    assert (
        "The engine is not started again: it failed to start 3 times in a row. The server ends."
        in log
    )
