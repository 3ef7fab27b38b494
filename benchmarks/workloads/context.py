"""W6: 32 requests that share one 400-token context, with and without the prefix cache."""

from __future__ import annotations

from benchmarks.bundles import writer
from benchmarks.contest import Contestant, compete, measured
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.report import Measurement
from benchmarks.session import Session
from benchmarks.texts import prompts, questions
from benchmarks.workers import System

NUM_REQUESTS = 32
MAX_NEW = 16
PREFIX_BYTES = 256 * 2**20

CACHED = System(
    "engine, prefix cache",
    "engine_worker",
    options={"max_running": NUM_REQUESTS, "prefix_bytes": PREFIX_BYTES},
)
UNCACHED = System(
    "engine, no cache", "engine_worker", options={"max_running": NUM_REQUESTS, "prefix_bytes": 0}
)


def run_context(session: Session) -> list[Measurement]:
    """Return requests per second; every round has a context of its own, which nobody has seen before."""
    model = session.decoder
    adapters = session.adapters(model, "w6", {"writer": writer()})
    num_context = session.options.full_or_quick(400, 100)
    contexts = prompts(model.tokenizer, session.options.runs + 1, num_context)
    asked = [
        model.tokenizer.encode(f"\n\n{each.question}", add_special=False).ids[:32]
        for each in questions()[:NUM_REQUESTS]
    ]

    def work_of(round_number: int) -> Work:
        return Work([WorkRow(contexts[round_number] + ids, "writer", MAX_NEW) for ids in asked])

    results = compete(
        session,
        model,
        [Contestant(system, adapters, 1, work_of) for system in (CACHED, UNCACHED)],
    )
    return measured("W6", "requests/s", results, NUM_REQUESTS)
