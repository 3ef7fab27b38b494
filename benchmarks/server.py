"""A server as people run it, ``headstock serve`` in a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.registry.registry import Registry
from benchmarks.session import Model, Session
from benchmarks.workers import ROOT, pin, tree_pss_bytes
from service.client import Client
from service.demo import free_port
from service.opening import open_registry
from service.settings import load_settings

_START_SECONDS = 180.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready, and how long it took to be."""

    url: str
    pid: int
    ready_seconds: float

    def pss_bytes(self) -> int:
        """Return what the whole process tree holds of memory, shared pages counted in part."""
        return tree_pss_bytes(self.pid)

    def cpu_seconds(self) -> float:
        """Return the processor time the whole tree has used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def pin(self, engine_cores: set[int], other_cores: set[int]) -> None:
        """Keep the engine's process, the one that holds the backbone, to some cores and all others to others."""
        processes = self.processes()
        engine = max(processes, key=lambda process: process.memory_full_info().uss)
        for process in processes:
            pin(process.pid, engine_cores if process is engine else other_cores)


def new_home(session: Session, name: str) -> Path:
    """Return an empty home for a server, with this session's backbones in it."""
    home = session.scratch / name
    home.mkdir(parents=True)
    backbones = session.home / "backbones"
    if backbones.is_dir():
        (home / "backbones").symlink_to(backbones)
    return home


def fill_registry(home: Path, model: Model, adapters: Mapping[str, str]) -> Registry:
    """Register bundles, each as version 1 of its name."""
    registry = open_registry(load_settings(home=home))
    registry.add_backbone(model.spec)
    for name, folder in adapters.items():
        registry.create_version(name, Path(folder))
    return registry


@contextmanager
def running_server(
    session: Session, home: Path, model: Model, **settings: object
) -> Iterator[RunningServer]:
    """Serve a backbone from a home folder until the block ends."""
    port = free_port()
    given = {"dtype": session.options.dtype, "threads": session.options.threads, **settings}
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HEADSTOCK_")},
        "HEADSTOCK_HOME": str(home),
        "HEADSTOCK_BACKBONE": model.source,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{f"HEADSTOCK_{name.upper()}": str(value) for name, value in given.items()},
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    log = home / "server.log"
    with log.open("a") as file:
        begin = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield RunningServer(url, process.pid, time.monotonic() - begin)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Client(url) as client:
        while not client.is_healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server did not start: {log.read_text()[-500:]}")
            time.sleep(_POLL_SECONDS)
