"""W2: 512 real texts over 64 adapters with their own label counts, shuffled, in windows of 32 rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from benchmarks.bundles import ALL_LINEAR, QUERY_VALUE, Lora, classifier
from benchmarks.contest import Contestant, compete, measured
from benchmarks.environments import LATEFUSE
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.reference import label_agreement
from benchmarks.report import Measurement
from benchmarks.session import Model, Session
from benchmarks.texts import SETS, short_texts
from benchmarks.workers import System

RANK = 8
MAX_TOKENS = 128
WINDOW = 32
NUM_TEXTS = 512
NUM_ADAPTERS = 64
NUM_MERGED_DECODERS = 16  # more copies of a decoder would not fit the machine

ENGINE = System("engine", "engine_worker")
NAMES = System("peft adapter_names", "scoring_worker", options={"mode": "names"})
SWITCH = System("peft set_adapter", "scoring_worker", options={"mode": "switch"})
MERGED = System("one merged model a task", "scoring_worker", options={"mode": "merged"})


def run_scoring(session: Session) -> list[Measurement]:
    """Return scored rows per second on the encoder, then on the decoder."""
    return [*_on_encoder(session), *_on_decoder(session)]


def _on_encoder(session: Session) -> list[Measurement]:
    model, number = session.encoder, session.options.full_or_quick(NUM_ADAPTERS, 8)
    # Query and value: all that latefuse can adapt.
    adapters = _adapters(session, model, number, QUERY_VALUE)
    work = _work(session, model, list(adapters))
    systems = [ENGINE, NAMES, SWITCH, MERGED, _latefuse(work)]
    if session.options.is_quick:
        systems = [ENGINE, NAMES, MERGED]
    name = f"W2 {model.spec.name}"
    return _measure(session, model, name, [(system, adapters, work) for system in systems])


def _on_decoder(session: Session) -> list[Measurement]:
    model, number = session.decoder, session.options.full_or_quick(NUM_ADAPTERS, 8)
    adapters = _adapters(session, model, number, ALL_LINEAR)
    name, work = f"W2 {model.spec.name}", _work(session, model, list(adapters))
    if session.options.is_quick:
        return _measure(session, model, name, [(ENGINE, adapters, work)])
    few = dict(list(adapters.items())[:NUM_MERGED_DECODERS])
    narrow = _work(session, model, list(few))
    entries = [(system, adapters, work) for system in (ENGINE, NAMES, SWITCH)]
    entries += [(system, few, narrow) for system in (ENGINE, NAMES, MERGED)]
    return _measure(session, model, name, entries)


def _measure(
    session: Session,
    model: Model,
    name: str,
    entries: Sequence[tuple[System, Mapping[str, str], Work]],
) -> list[Measurement]:
    every = {k: v for _, adapters, _ in entries for k, v in adapters.items()}
    results = compete(
        session,
        model,
        [_contestant(system, adapters, work) for system, adapters, work in entries],
        lambda results: label_agreement(session, model, every, results),
    )
    return measured(name, "rows/s", results, len(entries[0][2].rows))


def _contestant(system: System, adapters: Mapping[str, str], work: Work) -> Contestant:
    return Contestant(system, adapters, len(adapters), lambda _: work)


def _adapters(
    session: Session, model: Model, number: int, targets: tuple[str, ...]
) -> dict[str, str]:
    tasks = {f"task-{i}": classifier(num_labels(i)) for i in range(number)}
    return session.adapters(model, "w2", tasks, Lora(RANK, targets))


def num_labels(task: int) -> int:
    """Return the labels of a task: as many as its data set has, or a share of them, so that widths differ."""
    return (10 + task * 7 % 68, 15 + task * 11 % 137, 2, 2)[task % len(SETS)]


def _work(session: Session, model: Model, names: Sequence[str]) -> Work:
    """Return each set's texts, spread evenly over the adapters of that set, shuffled."""
    rows = []
    for s, name in enumerate(SETS):
        owners = names[s :: len(SETS)]
        for i, text in enumerate(short_texts(name)):
            ids = model.tokenizer.encode(text).ids[:MAX_TOKENS]
            rows.append(WorkRow(ids, owners[i % len(owners)]))
    random.Random(0).shuffle(rows)
    return Work(rows[: session.options.full_or_quick(NUM_TEXTS, 64)], WINDOW)


def _latefuse(work: Work) -> System:
    longest = max(len(row.token_ids) for row in work.rows)
    options: dict[str, int | str] = {"rank": RANK, "batch_size": WINDOW, "max_tokens": longest}
    return System("latefuse", "latefuse_worker", LATEFUSE, options)
