"""GPU: 64 requests over 1, 8, 64 or no rank-16 adapters on all linear layers of a random Llama of 1B shape."""

from __future__ import annotations

import torch

from benchmarks.bundles import Lora, writer
from benchmarks.contest import Contestant, compete, measured
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.random_backbone import LLAMA_1B, SMALL, random_backbone, random_prompts
from benchmarks.reference import token_agreement
from benchmarks.report import Measurement
from benchmarks.session import Session
from benchmarks.workers import System

RANK = 16
COUNTS = (1, 8, 64)
_GIB = 2**30
ENGINE = System(
    "engine",
    "engine_worker",
    options={
        "prefix_bytes": 0,
        "max_running": 128,  # the rows of one adapter alone must not take turns
        "bank_bytes": 4 * _GIB,
        "host_bytes": 4 * _GIB,
        "cache_bytes": _GIB,
    },
)
BARE = System("engine, bare backbone", "engine_worker", options=ENGINE.options)
PEFT = System("peft adapter_names", "peft_worker", options={"mode": "names"})
GENERATE = System("transformers generate", "transformers_worker", options={"mode": "generate"})


def run_gpu(session: Session) -> list[Measurement]:
    """Return generated tokens per second of every system, prefill included.

    With ``is_quick`` a small backbone runs on whatever there is; else a CUDA device is needed, and without one
    nothing is measured.
    """
    options = session.options
    if not options.is_quick and not torch.cuda.is_available():
        session.note("GPU is left out: there is no CUDA device here")
        return []
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    config = SMALL if options.is_quick else LLAMA_1B
    name = f"random-llama-{config.hidden_size}"
    model = session.model(str(random_backbone(session.home / "bench" / "backbones" / name, config)))
    counts = COUNTS[: options.full_or_quick(3, 2)]
    num_rows, max_new = options.full_or_quick(64, 8), options.full_or_quick(64, 4)
    texts = random_prompts(config, num_rows, options.full_or_quick(128, 16))
    names = [f"writer-{i}" for i in range(counts[-1])]
    adapters = session.adapters(model, "gpu", {n: writer() for n in names}, Lora(rank=RANK))

    def work(count: int) -> Work:
        """Return the requests, spread over the first ``count`` adapters."""
        owners = [names[i % count] if count else None for i in range(num_rows)]
        rows = zip(texts, owners, strict=True)
        return Work([WorkRow(ids, owner, max_new) for ids, owner in rows])

    def contestant(system: System, count: int) -> Contestant:
        held = {name: adapters[name] for name in names[:count]}
        return Contestant(system, held, count, lambda _: work(count))

    contestants = [contestant(system, count) for count in counts for system in (ENGINE, PEFT)]
    contestants += [contestant(system, 0) for system in (BARE, GENERATE)]
    results = compete(
        session,
        model,
        contestants,
        lambda results: token_agreement(session, model, adapters, results, device=device),
        device=device,
    )
    return measured("GPU", "tokens/s", results, num_rows * max_new)
