"""Systems timed on one piece of work, interleaved; those that can't take part, or answer garbage, are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.environments import PeerMissing
from benchmarks.peers.wire import Outcome, Work
from benchmarks.report import Measurement, measure
from benchmarks.rounds import run_rounds
from benchmarks.session import Model, Session
from benchmarks.workers import System, Worker

MIN_AGREEMENT = 0.9


@dataclass(frozen=True, slots=True)
class Contestant:
    """A system with the adapters it holds and the work of each round; round -1 is the warm-up.

    Args:
        num_adapters: what the report says; 0 for the bare backbone.
    """

    system: System
    adapters: Mapping[str, str]
    num_adapters: int
    work_of: Callable[[int], Work]

    @property
    def key(self) -> str:
        return f"{self.system.name}/{self.num_adapters}"


@dataclass(slots=True)
class Result:
    """What one contestant did: its rounds, the memory it held afterwards, and its warm-up's outputs."""

    contestant: Contestant
    warm_up: Outcome
    rounds: list[Outcome] = field(default_factory=list)
    pss_bytes: int = 0


def compete(
    session: Session,
    model: Model,
    contestants: Sequence[Contestant],
    check: Callable[[Sequence[Result]], Mapping[str, float]] | None = None,
    *,
    device: str = "cpu",
) -> list[Result]:
    """Load all, warm all up, check what they say, and time them round by round.

    Args:
        check: gives, by contestant's key, the share of its warm-up's outputs that agree with the reference.
    """
    with ExitStack() as stack:
        workers = _load(session, model, contestants, stack, device)
        results = _warm_up(session, workers, contestants)
        if check is not None:
            results = _without_garbage(session, results, check(list(results.values())))
        _time(session, workers, results)
        for key, result in results.items():
            result.pss_bytes = workers[key].pss_bytes()
    return list(results.values())


def measured(
    workload: str, unit: str, results: Sequence[Result], amount: float
) -> list[Measurement]:
    """Return amounts per second, in the order given."""
    return [
        measure(
            workload,
            result.contestant.system.name,
            result.contestant.num_adapters,
            unit,
            [amount / outcome.seconds for outcome in result.rounds],
        )
        for result in results
    ]


def memory(workload: str, results: Sequence[Result]) -> list[Measurement]:
    """Return what each contestant's processes held after its rounds, in MB."""
    return [
        measure(
            f"{workload} memory",
            result.contestant.system.name,
            result.contestant.num_adapters,
            "MB",
            [result.pss_bytes / 1e6],
        )
        for result in results
    ]


def _load(
    session: Session,
    model: Model,
    contestants: Sequence[Contestant],
    stack: ExitStack,
    device: str,
) -> dict[str, Worker]:
    # All processes first: they import their libraries side by side while one after the other loads.
    workers = dict(_started(session, contestants, stack))
    for contestant in contestants:
        if contestant.key not in workers:
            continue
        system = contestant.system
        session.say(f"  loading {system.name}, {contestant.num_adapters} adapters")
        try:
            order = session.order(model, contestant.adapters, system.options, device=device)
            workers[contestant.key].load(order)
        except PeerMissing as missing:
            session.note(f"{system.name} is left out: {missing}")
            workers.pop(contestant.key).close()
    return workers


def _started(
    session: Session, contestants: Sequence[Contestant], stack: ExitStack
) -> Iterator[tuple[str, Worker]]:
    for contestant in contestants:
        try:
            worker = stack.enter_context(session.start(contestant.system))
        except PeerMissing as missing:
            session.note(f"{contestant.system.name} is left out: {missing}")
        else:
            yield contestant.key, worker


def _warm_up(
    session: Session, workers: Mapping[str, Worker], contestants: Sequence[Contestant]
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for contestant in contestants:
        if contestant.key not in workers:
            continue
        session.say(f"  warming up {contestant.system.name}, {contestant.num_adapters} adapters")
        try:
            outcome = workers[contestant.key].run(contestant.work_of(-1))
        except PeerMissing as missing:
            session.note(f"{contestant.system.name} is left out: {missing}")
        else:
            results[contestant.key] = Result(contestant, outcome)
    return results


def _without_garbage(
    session: Session, results: dict[str, Result], agreements: Mapping[str, float]
) -> dict[str, Result]:
    kept: dict[str, Result] = {}
    for key, result in results.items():
        name, share = result.contestant.system.name, agreements.get(key, 1.0)
        session.say(f"  {name}: {share:.1%} of its outputs are the fp32 reference's")
        if share >= MIN_AGREEMENT:
            kept[key] = result
        else:
            session.note(
                f"{name} is left out: only {share:.1%} of its outputs are the fp32 reference's"
            )
    return kept


def _time(session: Session, workers: Mapping[str, Worker], results: dict[str, Result]) -> None:
    """Fill in the rounds; a system that fails in one of them leaves the results."""

    def turn(key: str) -> Callable[[int], Outcome | None]:
        def run(round_number: int) -> Outcome | None:
            if key not in results:
                return None
            contestant = results[key].contestant
            try:
                outcome = workers[key].run(contestant.work_of(round_number))
            except PeerMissing as missing:
                session.note(f"{contestant.system.name} is left out: {missing}")
                del results[key]
                return None
            session.say(f"    round {round_number + 1}: {key} {outcome.seconds:.2f} s")
            return outcome

        return run

    session.say(f"  timing {len(results)} systems, {session.options.runs} rounds")
    given = run_rounds({key: turn(key) for key in results}, session.options.runs)
    for key, result in results.items():
        result.rounds = [outcome for outcome in given[key] if outcome is not None]
