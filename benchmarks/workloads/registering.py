"""R1: how long from the first byte of a bundle's upload to its first correct answer."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import httpx

from benchmarks.bundles import Lora, classifier
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.report import Measurement, measure
from benchmarks.server import new_home, running_server
from benchmarks.session import Session
from benchmarks.workloads.cold import ENGINE, TEXT

BUNDLE_BYTES = 10_000_000
_NUM_LABELS = 2
_TIMEOUT_SECONDS = 120.0


def run_registering(session: Session) -> list[Measurement]:
    """Return times of bundles that one server, on SQLite and a local folder, was sent one after the other."""
    rank = rank_for(session, session.options.full_or_quick(BUNDLE_BYTES, BUNDLE_BYTES // 100))
    # The process's own first upload and answer belong to nobody.
    tasks = {f"sent-{i}": classifier(_NUM_LABELS) for i in range(session.options.runs + 1)}
    adapters = session.adapters(session.decoder, f"r1-rank-{rank}", tasks, Lora(rank=rank))
    labels = _expected(session, adapters)
    first, *timed = (Upload(name, Path(folder)) for name, folder in adapters.items())
    session.note(f"R1: bundles of {len(first.archive) / 1e6:.1f} MB, rank {rank}.")
    posts, answers = [], []
    home = new_home(session, "r1")
    with (
        running_server(session, home, session.decoder) as server,
        httpx.Client(base_url=server.url, timeout=_TIMEOUT_SECONDS) as client,
    ):
        _send_and_ask(client, first, labels)
        for upload in timed:
            post, answer = _send_and_ask(client, upload, labels)
            posts.append(post)
            answers.append(answer)
    return [
        measure("R1 upload to first correct answer", "server", 1, "ms", answers),
        measure("R1 upload alone", "server", 1, "ms", posts),
    ]


class Upload:
    """A bundle as it is sent."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, arcname=path.name)
        self.archive = buffer.getvalue()


def rank_for(session: Session, num_bytes: int) -> int:
    """Return the rank that makes all-linear bf16 weights so large on this backbone."""
    sizes = session.decoder.spec.modules.values()
    bytes_a_rank = 2 * sum(inputs + outputs for inputs, outputs in sizes)
    return max(1, round(num_bytes / bytes_a_rank))


def _expected(session: Session, adapters: dict[str, str]) -> dict[str, str]:
    """Return each adapter's label for the text, by the engine in process."""
    ids = session.decoder.tokenizer.encode(TEXT).ids
    with session.start(ENGINE) as worker:
        worker.load(session.order(session.decoder, adapters))
        outputs = worker.run(Work([WorkRow(ids, name) for name in adapters])).outputs
    return {name: f"label-{label}" for name, (label,) in zip(adapters, outputs, strict=True)}


def _send_and_ask(
    client: httpx.Client, upload: Upload, labels: dict[str, str]
) -> tuple[float, float]:
    """Return the milliseconds until it was registered, and until it had answered; a wrong answer ends the benchmark."""
    begin = time.perf_counter()
    file = {"file": (f"{upload.name}.tar", upload.archive)}
    client.post("/v1/adapters", data={"name": upload.name}, files=file).raise_for_status()
    registered = time.perf_counter()
    given = client.post("/v1/predict", json={"adapter": upload.name, "inputs": [TEXT]})
    answered = time.perf_counter()
    (answer,) = given.raise_for_status().json()["predictions"]
    if answer.get("label") != labels[upload.name]:
        raise RuntimeError(
            f"'{upload.name}' answered {answer}, the engine in process '{labels[upload.name]}'"
        )
    return (registered - begin) * 1000, (answered - begin) * 1000
