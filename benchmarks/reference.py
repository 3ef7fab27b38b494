"""Stock PEFT in fp32, one adapter at a time: what every system's outputs are compared with before it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.contest import Result
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.session import Model, Session
from benchmarks.workers import System, Worker

FORCED = System("reference", "peft_worker", options={"mode": "force"})
SWITCHED = System("reference", "scoring_worker", options={"mode": "switch"})


def token_agreement(
    session: Session,
    model: Model,
    adapters: Mapping[str, str],
    results: Sequence[Result],
    num_rows: int = 3,
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """Return by key the share of generated tokens that the reference would choose too, given those before.

    Teacher forcing: a near tie that rounding tips costs one token, not the rest of the row.
    """
    works = {result.contestant.key: _forced(result, num_rows) for result in results}
    owners = {row.adapter for work in works.values() for row in work.rows}
    held = {name: folder for name, folder in adapters.items() if name in owners}
    # PEFT takes a second an adapter to load, so it is given no more than are asked for.
    with _reference(session, model, held or adapters, FORCED, device) as worker:
        shares = {}
        for result in results:
            wanted = worker.run(works[result.contestant.key]).outputs
            shares[result.contestant.key] = _share(result.warm_up.outputs[:num_rows], wanted)
        return shares


def label_agreement(
    session: Session, model: Model, adapters: Mapping[str, str], results: Sequence[Result]
) -> dict[str, float]:
    """Return by key the share of labels that are the reference's."""
    with _reference(session, model, adapters, SWITCHED) as worker:
        wanted: dict[int, list[list[int]]] = {}
        shares = {}
        for result in results:
            number = result.contestant.num_adapters
            if number not in wanted:
                wanted[number] = worker.run(result.contestant.work_of(-1)).outputs
            shares[result.contestant.key] = _share(result.warm_up.outputs, wanted[number])
        return shares


@contextmanager
def _reference(
    session: Session,
    model: Model,
    adapters: Mapping[str, str],
    system: System,
    device: str = "cpu",
) -> Iterator[Worker]:
    with session.start(system) as worker:
        worker.load(session.order(model, adapters, system.options, dtype="float32", device=device))
        yield worker


def _forced(result: Result, num_rows: int) -> Work:
    rows = result.contestant.work_of(-1).rows[:num_rows]
    return Work(
        [
            WorkRow(row.token_ids + output, row.adapter, len(output))
            for row, output in zip(rows, result.warm_up.outputs, strict=False)
        ]
    )


def _share(given: Sequence[list[int]], wanted: Sequence[list[int]]) -> float:
    pairs = [
        pair
        for left, right in zip(given, wanted, strict=True)
        for pair in zip(left, right, strict=True)
    ]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))
