"""A real server in a process of its own, on a free port, ended with the test."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from service.client import Client
from service.demo import free_port

ROOT = Path(__file__).parent.parent
START_SECONDS = 120


@contextmanager
def running_server(home: Path, backbone: str, **settings):
    """Serve a backbone from a home folder; give the client and the process."""
    port = free_port()
    environment = {
        **os.environ,
        "HEADSTOCK_HOME": str(home),
        "HEADSTOCK_BACKBONE": backbone,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{f"HEADSTOCK_{name.upper()}": str(value) for name, value in settings.items()},
    }
    log = home / "server.log"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until_ready(client, process, log)
            yield client, process
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(client, process, log):
    deadline = time.monotonic() + START_SECONDS
    while not client.is_healthy():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
