"""W5: how long until a bundle that is sent answers, a started server is ready, and a cold adapter answers."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bundles import Lora, classifier
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.report import Measurement, measure
from benchmarks.server import fill_registry, new_home, running_server
from benchmarks.session import Session
from benchmarks.texts import short_texts
from benchmarks.workers import System
from service.client import Client

NUM_COLD = 8
SENT, FIRST = "sent", "cold-0"
TEXT = short_texts("banking77")[0]
ENGINE = System("engine", "engine_worker")


@dataclass(slots=True)
class _Times:
    ready: list[float] = field(default_factory=list)
    post: list[float] = field(default_factory=list)
    extra: list[float] = field(default_factory=list)


def run_cold(session: Session) -> list[Measurement]:
    """Return times of a server that is started anew each run, all-linear rank-8 adapters on the decoder."""
    number = session.options.full_or_quick(NUM_COLD, 2)
    tasks = {f"cold-{i}": classifier(2) for i in range(number)} | {SENT: classifier(2)}
    adapters = session.adapters(session.decoder, "w5", tasks, Lora(rank=8))
    labels = _expected(session, adapters)
    times = _Times()
    for run in range(session.options.runs):
        session.say(f"  start {run + 1} of {session.options.runs}")
        _one_start(session, f"w5-{run}", adapters, labels, times)
    return [
        measure("W5 POST of a bundle to its first correct answer", "server", 1, "ms", times.post),
        measure("W5 process start to ready", "server", 0, "s", times.ready),
        measure("W5 first cold answer above a warm one", "server", number, "ms", times.extra),
    ]


def _expected(session: Session, adapters: dict[str, str]) -> dict[str, str]:
    """Return each adapter's label for the text, by the engine in process."""
    model = session.decoder
    ids = model.tokenizer.encode(TEXT).ids
    with session.start(ENGINE) as worker:
        worker.load(session.order(model, adapters))
        outputs = worker.run(Work([WorkRow(ids, name) for name in adapters])).outputs
    return {name: f"label-{label}" for name, (label,) in zip(adapters, outputs, strict=True)}


def _one_start(
    session: Session, name: str, adapters: dict[str, str], labels: dict[str, str], times: _Times
) -> None:
    home = new_home(session, name)
    registered = {key: folder for key, folder in adapters.items() if key != SENT}
    fill_registry(home, session.decoder, registered)
    with (
        running_server(session, home, session.decoder) as server,
        Client(server.url) as client,
    ):
        times.ready.append(server.ready_seconds)
        _ask(client, FIRST, labels)  # the process's own first answer belongs to nobody
        times.extra.append(_cold_above_warm(client, list(registered)[1:], labels))
        times.post.append(_post_to_answer(client, Path(adapters[SENT]), labels))


def _cold_above_warm(client: Client, names: list[str], labels: dict[str, str]) -> float:
    extras = []
    for name in names:
        cold = _ask(client, name, labels)
        warm = statistics.median(_ask(client, name, labels) for _ in range(5))
        extras.append(cold - warm)
    return statistics.median(extras)


def _post_to_answer(client: Client, bundle: Path, labels: dict[str, str]) -> float:
    begin = time.perf_counter()
    client.create_version(SENT, bundle)
    _ask(client, SENT, labels)
    return (time.perf_counter() - begin) * 1000


def _ask(client: Client, name: str, labels: dict[str, str]) -> float:
    """Return the milliseconds an answer took; a wrong one ends the benchmark."""
    begin = time.perf_counter()
    (answer,) = client.predict(name, [TEXT])
    milliseconds = (time.perf_counter() - begin) * 1000
    if answer.get("label") != labels[name]:
        raise RuntimeError(f"'{name}' answered {answer}, the engine in process '{labels[name]}'")
    return milliseconds
