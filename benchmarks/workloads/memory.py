"""Memory: what the whole server's process tree holds, bare and for each resident adapter."""

from __future__ import annotations

from pathlib import Path

import httpx

from adapters.bundle import WEIGHTS_FILE
from benchmarks.bundles import Lora, classifier
from benchmarks.report import Measurement, measure
from benchmarks.server import RunningServer, fill_registry, new_home, running_server
from benchmarks.session import Session
from benchmarks.texts import short_texts
from service.client import Client

NUM_FIRST = (
    8  # what only the first adapters cost (buffers, the bank's first pools) is not an adapter's
)
NUM_MORE = 32
TEXT = short_texts("banking77")[0]


def run_memory(session: Session) -> list[Measurement]:
    """Return the server's summed PSS without adapters, and each adapter's share over its bytes."""
    more = session.options.full_or_quick(NUM_MORE, 4)
    tasks = {f"task-{i}": classifier(2) for i in range(NUM_FIRST + more)}
    adapters = session.adapters(session.decoder, "memory", tasks, Lora(rank=8))
    bare, shares = [], []
    for run in range(session.options.full_or_quick(min(3, session.options.runs), 1)):
        home = new_home(session, f"memory-{run}")
        fill_registry(home, session.decoder, adapters)
        with running_server(session, home, session.decoder) as server:
            _answer_bare(session, server)
            bare.append(server.pss_bytes() / 1e6)
            shares.append(_bytes_an_adapter(server, list(adapters)))
    size = (Path(adapters["task-0"]) / WEIGHTS_FILE).stat().st_size
    return [
        measure("memory, no adapters, after first answers", "server", 0, "MB", bare),
        measure("memory of a resident adapter", "server", more, "MB", [s / 1e6 for s in shares]),
        measure("memory over an adapter's bytes", "server", more, "x", [s / size for s in shares]),
    ]


def _answer_bare(session: Session, server: RunningServer) -> None:
    """Have the bare backbone answer; OpenAI's route is the one that takes its name for a model."""
    name = session.decoder.spec.name
    body = {"model": name, "prompt": TEXT, "max_tokens": 16}
    for _ in range(4):
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
        if response.status_code == httpx.codes.NOT_FOUND:
            note = "memory: this server has no /v1/completions, so its bare backbone gave no answer"
            if note not in session.notes:
                session.note(note)
            return
        response.raise_for_status()


def _bytes_an_adapter(server: RunningServer, names: list[str]) -> float:
    with Client(server.url) as client:
        _ask(client, names[:NUM_FIRST])
        before = server.pss_bytes()
        _ask(client, names[NUM_FIRST:])
        return (server.pss_bytes() - before) / len(names[NUM_FIRST:])


def _ask(client: Client, names: list[str]) -> None:
    for name in names:
        (answer,) = client.predict(name, [TEXT])
        if "label" not in answer:
            raise RuntimeError(f"'{name}' answered {answer}")
