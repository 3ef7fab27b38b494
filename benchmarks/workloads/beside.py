"""R4: how long predictions take while 50 MB are uploaded, and while a job trains, against an idle server."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import numpy as np

from benchmarks.bundles import Lora, classifier
from benchmarks.report import Measurement, measure
from benchmarks.server import fill_registry, new_home, running_server
from benchmarks.session import Session
from benchmarks.texts import short_texts
from benchmarks.workloads.registering import Upload, rank_for
from service.client import Client

UPLOAD_BYTES = 50_000_000
_NUM_CALLERS = 2
_WINDOW_SECONDS = 8.0
_TIMEOUT_SECONDS = 120.0
_SET = "sentence_polarity"


def run_beside(session: Session) -> list[Measurement]:
    """Return percentiles of predictions' times: windows take turns, but the job's come last."""
    home = new_home(session, "r4")
    asked = session.adapters(session.decoder, "r4", {"asked": classifier(2)}, Lora())
    fill_registry(home, session.decoder, asked)
    bundles = _bundles(session)
    examples = _examples(session.scratch / "examples.jsonl", _num_bytes(session))
    with running_server(session, home, session.decoder) as server:
        window = _Window(server.url, session.options.full_or_quick(8, 1))
        idle: list[float] = []
        beside: dict[str, list[float]] = {"file": [], "bundle": []}
        window.percentile(99)  # the process's own first answers belong to nobody
        for _ in range(session.options.runs):
            idle.append(window.percentile(99))
            with sending(send_file, server.url, [examples]):
                beside["file"].append(window.percentile(99))
            with sending(send_bundle, server.url, bundles):
                beside["bundle"].append(window.percentile(99))
        quiet = [window.percentile(95) for _ in range(session.options.runs)]
        with _training(server.url, session):
            training = [window.percentile(95) for _ in range(session.options.runs)]
    p99, p95 = "R4 p99 of predictions", "R4 p95 of predictions"
    return [
        measure(p99, "idle", 1, "ms", idle),
        *(measure(p99, f"while a {what} is sent", 1, "ms", runs) for what, runs in beside.items()),
        measure(p95, "idle", 1, "ms", quiet),
        measure(p95, "while a job trains", 1, "ms", training),
    ]


class _Window:
    """Callers that ask one text after another, each on its own connection."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url, self._seconds = url, seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the milliseconds of all calls that began within a window of time."""
        times: list[float] = []
        deadline = time.perf_counter() + self._seconds
        threads = [
            threading.Thread(target=self._call, args=(i, deadline, times))
            for i in range(_NUM_CALLERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return float(np.percentile(times, percent)) * 1000

    def _call(self, first: int, deadline: float, times: list[float]) -> None:
        texts = itertools.cycle(short_texts(_SET)[first::_NUM_CALLERS])
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_SECONDS) as client:
            while (begin := time.perf_counter()) < deadline:
                body = {"adapter": "asked", "inputs": [next(texts)]}
                client.post("/v1/predict", json=body).raise_for_status()
                times.append(time.perf_counter() - begin)


@contextmanager
def sending(send: Callable[[str, str], None], url: str, paths: Sequence[Path]) -> Iterator[None]:
    """Send one file after the other, as long as the block runs, from a process that takes no time from others."""
    context = get_context("spawn")
    is_over, is_ready = context.Event(), context.Event()
    process = context.Process(
        target=_repeat, args=(send, url, [str(path) for path in paths], is_ready, is_over)
    )
    process.start()
    try:
        is_ready.wait(_TIMEOUT_SECONDS)
        yield
    finally:
        is_over.set()
        process.join()
    if process.exitcode:
        raise RuntimeError("what was sent was refused; the lines above tell why")


def _repeat(
    send: Callable[[str, str], None], url: str, paths: Sequence[str], ready: Event, over: Event
) -> None:
    os.nice(19)  # clients are elsewhere
    for path in itertools.cycle(paths):
        send(url, path)
        ready.set()
        if over.is_set():
            return


def send_file(url: str, path: str) -> None:
    with httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS) as client, open(path, "rb") as file:
        sent = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": file})
        client.delete(f"/v1/files/{sent.raise_for_status().json()['id']}").raise_for_status()


def send_bundle(url: str, path: str) -> None:
    """Send a bundle; the same one again replaces nothing, but is taken in and checked all the same."""
    with httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS) as client, open(path, "rb") as file:
        sent = client.post("/v1/adapters", data={"name": "sent"}, files={"file": file})
        sent.raise_for_status()


@contextmanager
def _training(url: str, session: Session) -> Iterator[None]:
    """Let a job train on the same backbone, as long as the block runs."""
    data = _examples(session.scratch / "train.jsonl", 400_000)
    with Client(url) as client:
        file = client.create_file(data)["id"]
        order = {
            "model": session.decoder.spec.name,
            "training_file": file,
            "task": {"type": "text-classification", "test_share": 0.05},
            "training": {"epochs": 100},
        }
        job = client.create_job(order)["id"]
        try:
            while (client.get_job(job)["progress"] or {}).get("stage") != "fit":
                time.sleep(0.2)
            yield
        finally:
            client.change_job(job, "cancel")


def _bundles(session: Session) -> list[Path]:
    """Return archives of bundles, each of weights of its own."""
    rank = rank_for(session, _num_bytes(session))
    tasks = {f"sent-{i}": classifier(2) for i in range(session.options.full_or_quick(4, 1))}
    made = session.adapters(session.decoder, f"r4-rank-{rank}", tasks, Lora(rank=rank))
    paths = []
    for name, folder in made.items():
        paths.append(session.scratch / f"{name}.tar")
        paths[-1].write_bytes(Upload(name, Path(folder)).archive)
    return paths


def _examples(path: Path, num_bytes: int) -> Path:
    """Write rows of real texts, each with its number so that none is another's copy."""
    texts = itertools.cycle(short_texts(_SET))
    size = 0
    with path.open("w") as file:
        for i, text in enumerate(texts):
            line = json.dumps({"text": f"{text} {i}", "label": ("negative", "positive")[i % 2]})
            size += file.write(line + "\n")
            if size >= num_bytes:
                return path
    raise AssertionError("texts end")


def _num_bytes(session: Session) -> int:
    return session.options.full_or_quick(UPLOAD_BYTES, UPLOAD_BYTES // 100)
