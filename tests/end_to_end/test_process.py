"""The server as a process: full, told to stop, killed, or without its engine."""

import threading

import httpx
import psutil

from service.server import check_port
from tests.servers import running_server


def test_a_full_queue_refuses_with_429(tmp_path, decoder_folder, bundles):
    with running_server(tmp_path / "home", str(decoder_folder), max_waiting_calls=1) as (client, _):
        client.create_version("summary", bundles / "summary")
        url, statuses = client._http.base_url, []

        def ask():
            with httpx.Client(base_url=url, timeout=60) as http:
                body = {"adapter": "summary", "inputs": ["The sun."] * 50}
                statuses.append(http.post("/v1/predict", json=body))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [r for r in statuses if r.status_code == 429]
        assert refused
        assert all(
            r.headers["Retry-After"] and r.json()["error"]["code"] == "overloaded" for r in refused
        )
        assert any(r.status_code == 200 for r in statuses)


def test_sigterm_ends_the_server_and_leaves_no_process(tmp_path, decoder_folder):
    with running_server(tmp_path / "home", str(decoder_folder)) as (client, process):
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        assert client.is_healthy()
        process.terminate()
        assert process.wait(timeout=30) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []


def test_a_killed_engine_ends_the_server_and_answers_what_was_in_flight(
    tmp_path, decoder_folder, bundles
):
    with running_server(tmp_path / "home", str(decoder_folder)) as (client, process):
        client.create_version("summary", bundles / "summary")
        client.predict("summary", "The sun.")
        (engine,) = engines_of(process)
        children = psutil.Process(process.pid).children(recursive=True)
        statuses = []

        def ask():
            body = {"adapter": "summary", "inputs": ["The sun. " * 20] * 200}
            with httpx.Client(base_url=client._http.base_url, timeout=60) as http:
                statuses.append(http.post("/v1/predict", json=body).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        steps = client.stats()["steps"]
        while asking.is_alive() and client.stats()["steps"] <= steps:
            pass  # until the engine is at work on it
        engine.kill()
        asking.join()
        assert statuses == [503]
        assert process.wait(timeout=30) == 1
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
        check_port("127.0.0.1", client._http.base_url.port)


def engines_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_server_leaves_no_process_behind_and_frees_its_port(tmp_path, decoder_folder):
    with running_server(tmp_path / "home", str(decoder_folder)) as (client, process):
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2  # the engine and LitServe's manager
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
        check_port("127.0.0.1", client._http.base_url.port)
