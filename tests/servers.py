"""A real server in a process of its own, on a free port, ended with the test; and calls from other threads."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from service.client import Client
from service.demo import free_port
from tests.homes import share_finds

ROOT = Path(__file__).parent.parent
START_SECONDS = 120


@contextmanager
def running_server(
    home: Path, backbone: str, *, ready: bool = True, group: Path | None = None, **settings
):
    """Serve a backbone from a home folder; give the client and the process, at once if not ``ready``.

    Args:
        group: a control group to run it in.
    """
    port = free_port()
    # One thread: two on a busy machine wait for each other longer than they compute.
    settings = {"threads": 1, **settings}
    environment = {
        **os.environ,
        "HEADSTOCK_HOME": str(home),
        "HEADSTOCK_BACKBONE": backbone,
        **{f"HEADSTOCK_{name.upper()}": str(value) for name, value in settings.items()},
    }
    log = home / "server.log"
    share_finds(home)
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    if group is not None:  # the shell joins it, and what it becomes is in it from the first page on
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            if ready:
                wait_until_ready(client, process, log)
            yield client, process
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(client, process, log):
    def look():
        assert process.poll() is None, log.read_text()
        return client.is_healthy()

    wait_until(look, seconds=START_SECONDS)


def wait_until(condition, seconds=60, pause=0.2):
    """Poll a condition until it holds, ever more seldom up to a pause; return what it gave."""
    begin = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begin
        assert waited < seconds, "It never came true."
        # A breath between two looks, not a guess at how long it takes; a longer one the longer it takes, for looking
        # takes time from what is waited for.
        time.sleep(min(0.005 + waited / 20, pause))
    return value


class Callers:
    """Calls sent from threads of their own, each on its own connection; `post` gives a future of the response."""

    def __init__(self, client, threads=16):
        self._url = client._http.base_url
        self._pool = ThreadPoolExecutor(threads)

    def post(self, body):
        return self._pool.submit(self._post, body)

    def _post(self, body):
        with httpx.Client(base_url=self._url, timeout=120) as http:
            return http.post("/v1/predict", json=body)


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def engine_of(process):
    """Return the engine's process; other children are multiprocessing's own."""
    (engine,) = [c for c in children_of(process) if "spawn_main" in " ".join(c.cmdline())]
    return engine


def long_call(rows=200, tokens=150):
    """Return a call that takes the tiny backbone seconds."""
    parameters = {"max_new_tokens": tokens}
    return {"adapter": "summary", "inputs": ["The sun."] * rows, "parameters": parameters}


def wait_until_at_work(client, rows=1):
    """Wait until the engine steps and has so many rows."""
    steps = client.stats()["steps"]

    def is_at_work():
        stats = client.stats()
        return stats["steps"] > steps + 1 and stats["waiting_rows"] >= rows

    wait_until(is_at_work)
