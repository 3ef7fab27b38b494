"""W4: from 5 to 2,000 registered adapters under uniform popularity; and more adapters in rotation than slots."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from benchmarks.bundles import QUERY_VALUE, Lora, writer
from benchmarks.contest import Contestant, compete, measured, memory
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.report import Measurement
from benchmarks.session import Session
from benchmarks.texts import prompts
from benchmarks.workers import System

NUM_REQUESTS = 64
NUM_RUNNING = 16  # as in W1
NUM_CLIFF_SLOTS = 8
HOST_BYTES = 2**30


def run_scale(session: Session) -> list[Measurement]:
    """Return generated tokens per second, and memory, by the number of adapters."""
    sizes = [5, 20] if session.options.is_quick else [5, 50, 500, 2000]
    session.say(f"  making {max(sizes)} adapters")
    tasks = {f"writer-{i}": writer() for i in range(max(sizes))}
    adapters = session.adapters(session.decoder, "w4", tasks, Lora(8, QUERY_VALUE))
    return [*_uniform(session, adapters, sizes), *_cliff(session, adapters)]


def _uniform(
    session: Session, adapters: Mapping[str, str], sizes: Sequence[int]
) -> list[Measurement]:
    max_new = session.options.full_or_quick(64, 8)
    num_prompt = session.options.full_or_quick(128, 32)
    texts = prompts(session.decoder.tokenizer, NUM_REQUESTS, num_prompt)
    limits: dict[str, int | str] = {
        "max_running": NUM_RUNNING,
        "bank_slots": 256,
        "host_bytes": HOST_BYTES,
        "prefix_bytes": 0,
    }
    system = System("engine", "engine_worker", options=limits)

    def contestant(size: int) -> Contestant:
        names = list(adapters)[:size]

        def draw(round_number: int) -> Work:
            chosen = random.Random(round_number).choices(names, k=len(texts))
            return Work(
                [WorkRow(ids, name, max_new) for ids, name in zip(texts, chosen, strict=True)]
            )

        return Contestant(system, {name: adapters[name] for name in names}, size, draw)

    results = compete(session, session.decoder, [contestant(size) for size in sizes])
    return [
        *measured("W4", "tokens/s", results, NUM_REQUESTS * max_new),
        *memory("W4", results),
    ]


def _cliff(session: Session, adapters: Mapping[str, str]) -> list[Measurement]:
    sizes = [8, 16] if session.options.is_quick else [8, 16, 64]
    texts = prompts(session.decoder.tokenizer, NUM_REQUESTS, 32)
    # As many rows at once as slots: what is left to differ is the cost of swapping.
    limits: dict[str, int | str] = {
        "max_running": NUM_CLIFF_SLOTS,
        "bank_slots": NUM_CLIFF_SLOTS,
        "host_bytes": HOST_BYTES,
        "prefix_bytes": 0,
    }
    system = System(f"engine, {NUM_CLIFF_SLOTS} slots", "engine_worker", options=limits)

    def contestant(size: int) -> Contestant:
        names = list(adapters)[:size]
        work = Work([WorkRow(ids, names[i % size], 16) for i, ids in enumerate(texts)])
        return Contestant(system, {name: adapters[name] for name in names}, size, lambda _: work)

    results = compete(session, session.decoder, [contestant(size) for size in sizes])
    return [
        *measured("W4 cliff", "tokens/s", results, NUM_REQUESTS * 16),
        *memory("W4 cliff", results),
    ]
