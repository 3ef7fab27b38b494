"""The server as a process: full, told to stop, or killed."""

import json
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path

import psutil
import pytest

from service.server import check_port
from tests.bundles import classifier, save_bundle
from tests.jobs import ORDER, worker_of, write_films
from tests.servers import (
    Callers,
    children_of,
    long_call,
    running_server,
    wait_until,
    wait_until_at_work,
)


def assert_refused(response, status, code):
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert int(response.headers["Retry-After"]) >= 1


def test_a_full_queue_refuses_calls_and_tokens_with_429(tmp_path, decoder_folder, bundles):
    settings = {"max_waiting_calls": 2, "max_waiting_tokens": 5000}
    with running_server(tmp_path / "home", str(decoder_folder), **settings) as (client, _):
        client.create_version("summary", bundles / "summary")
        too_large = client._http.post("/v1/predict", json=long_call(rows=60))
        assert too_large.status_code == 413
        assert "HEADSTOCK_MAX_WAITING_TOKENS" in too_large.json()["error"]["message"]
        callers = Callers(client)
        first = callers.post(long_call(rows=20))
        wait_until_at_work(client)
        refused = client._http.post("/v1/predict", json=long_call(rows=20))
        assert_refused(refused, 429, "overloaded")
        assert "tokens are waiting" in refused.json()["error"]["message"]
        calls = [callers.post(long_call(rows=1)) for _ in range(8)]
        answers = [call.result() for call in calls]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert_refused(answer, 429, "overloaded")
            assert "calls are waiting" in answer.json()["error"]["message"]
        assert first.result().status_code == 200
        assert client.predict("summary", ["The sun."] * 20)


def test_sigterm_lets_running_calls_finish_and_leaves_no_process(tmp_path, decoder_folder, bundles):
    settings = {"drain_seconds": 60}
    with running_server(tmp_path / "home", str(decoder_folder), **settings) as (client, process):
        client.create_version("summary", bundles / "summary")
        children = children_of(process)
        assert children
        running = [Callers(client).post(long_call(rows=100)) for _ in range(2)]
        wait_until_at_work(client, rows=101)
        for child in children:  # as a service manager does that signals the whole group
            child.send_signal(signal.SIGTERM)
        process.terminate()
        wait_until(lambda: not client.is_healthy(), seconds=5)
        assert_refused(client._http.post("/v1/predict", json=long_call(rows=1)), 503, "unavailable")
        assert process.poll() is None
        assert [call.result().status_code for call in running] == [200, 200]
        assert process.wait(timeout=30) == 0
        assert_all_gone(children, client)
    log = (tmp_path / "home" / "server.log").read_text()
    assert "leaked" not in log  # semaphores
    assert f"Headstock answers at {client._http.base_url}".rstrip("/") in log


def test_sigterm_lets_a_slow_client_read_its_answer_to_the_end(
    tmp_path, decoder_folder, decoder_spec
):
    save_bundle(tmp_path / "wide", decoder_spec, classifier(2000))
    body = json.dumps({"adapter": "wide", "inputs": ["a film"] * 256}).encode()
    settings = {"drain_seconds": 60}
    with running_server(tmp_path / "home", str(decoder_folder), **settings) as (client, process):
        client.create_version("wide", tmp_path / "wide")
        children = children_of(process)
        with socket.socket() as slow:  # far more than what the kernel takes for it is to come
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
            slow.connect(("127.0.0.1", client._http.base_url.port))
            head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            slow.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            assert slow.recv(1, socket.MSG_PEEK)
            process.terminate()
            psutil.wait_procs(children, timeout=30)  # nothing is computed any more
            response = HTTPResponse(slow)
            response.begin()
            assert response.status == 200
            assert len(json.loads(response.read())["predictions"]) == 256
        assert process.wait(timeout=30) == 0


def test_what_the_drain_does_not_finish_is_answered_with_503(tmp_path, decoder_folder, bundles):
    settings = {"drain_seconds": 0.2}
    with running_server(tmp_path / "home", str(decoder_folder), **settings) as (client, process):
        client.create_version("summary", bundles / "summary")
        children = children_of(process)
        running = [Callers(client).post(long_call(rows=250, tokens=200)) for _ in range(2)]
        wait_until_at_work(client, rows=251)
        begin = time.monotonic()
        process.terminate()
        for call in running:
            assert_refused(call.result(), 503, "unavailable")
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - begin < 5
        assert_all_gone(children, client)


@pytest.fixture
def estimating(tmp_path, decoder_folder, monkeypatch):
    """A server with a file of examples, and the folder of its temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    settings = {"drain_seconds": 0.2, "job_workers": 0}
    with running_server(tmp_path / "home", str(decoder_folder), **settings) as (client, process):
        file = client.create_file(write_films(tmp_path / "films.jsonl"))["id"]
        order = {**ORDER, "model": str(decoder_folder.name), "training_file": file}
        yield client, process, {**order, "register": {"name": "films"}}, scratch


def estimate_of(process):
    def look():
        return [c for c in children_of(process) if "training" in c.cmdline()]

    (run,) = wait_until(look)
    return run


def ask_for_estimate(client, order):
    return client._http.post("/v1/fine_tuning/jobs/estimate", json=order, timeout=120)


def test_sigterm_ends_an_estimate_with_503(estimating):
    client, process, order, scratch = estimating
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_for_estimate, client, order)
        run = estimate_of(process)
        process.terminate()
        assert_refused(asked.result(), 503, "unavailable")
    assert process.wait(timeout=30) == 0
    assert_all_gone([run], client)
    assert list(scratch.glob("headstock-estimate-*")) == []


def test_an_estimate_ends_when_nobody_waits_for_it(estimating):
    client, process, order, scratch = estimating
    body = json.dumps(order).encode()
    with socket.create_connection(("127.0.0.1", client._http.base_url.port)) as short:
        head = f"POST /v1/fine_tuning/jobs/estimate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        short.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        run = estimate_of(process)
    run.wait(timeout=5)
    wait_until(lambda: not list(scratch.glob("headstock-estimate-*")), seconds=5)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask_for_estimate, client, order)
        run = estimate_of(process)  # the turn is free again
        process.kill()
    assert_all_gone([run], client)


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's maps from /proc")
def test_only_the_engines_process_holds_torch_and_no_worker_waits_for_jobs(
    tmp_path, decoder_folder, bundles
):
    with running_server(tmp_path / "home", str(decoder_folder)) as (client, process):
        client.create_version("summary", bundles / "summary")
        assert client.predict("summary", ["The sun."])
        maps = [Path(f"/proc/{p.pid}/maps").read_text() for p in (process, *children_of(process))]
        assert ["libtorch" in text for text in maps].count(True) == 1
        assert "libtorch" not in maps[0]
        assert worker_of(process) is None


def test_sigterm_while_the_engine_starts_ends_the_server(tmp_path, decoder_folder):
    home = tmp_path / "home"
    with running_server(home, str(decoder_folder), ready=False) as (client, process):
        children = wait_until(lambda: children_of(process))
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert_all_gone(children, client)


def test_a_killed_server_leaves_no_process_behind_and_frees_its_port(
    tmp_path, decoder_folder, bundles
):
    with running_server(tmp_path / "home", str(decoder_folder)) as (client, process):
        client.create_version("summary", bundles / "summary")
        Callers(client).post(long_call())
        wait_until_at_work(client)
        children = children_of(process)
        process.kill()
        assert_all_gone(children, client)


def test_a_server_killed_while_its_engine_starts_leaves_no_process_behind(tmp_path, decoder_folder):
    home = tmp_path / "home"
    with running_server(home, str(decoder_folder), ready=False) as (client, process):
        children = wait_until(lambda: children_of(process))
        process.kill()
        assert_all_gone(children, client)


def assert_all_gone(children, client):
    _, alive = psutil.wait_procs(children, timeout=60)
    assert [(p.cmdline(), Path(f"/proc/{p.pid}/wchan").read_text()) for p in alive] == []
    check_port("127.0.0.1", client._http.base_url.port)
