"""W3: 40 % classification, 30 % question answering, 30 % summarization over 30 adapters, through HTTP."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from adapters.tasks.catalog import AnyTask
from benchmarks.bundles import Lora, answerer, classifier, writer
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.report import Measurement, measure
from benchmarks.rounds import run_rounds
from benchmarks.server import RunningServer, fill_registry, new_home, running_server
from benchmarks.session import Session
from benchmarks.texts import SETS, abstracts, questions, short_texts
from benchmarks.traffic import PARAMETERS, Request, Traffic, send_at_once, send_open_loop
from benchmarks.workers import System, Worker, pin

MIX = {"text-classification": 0.4, "question-answering": 0.3, "summarization": 0.3}
NUM_ADAPTERS = {"text-classification": 12, "question-answering": 9, "summarization": 9}
LOADS = (0.3, 0.6, 0.9, 1.2)  # of what the server can answer when all comes at once
SECONDS = 15
NUM_AT_ONCE = 128
GOOD_SECONDS = 5.0  # an answer later than this does not count as good
MAX_NEW = 32
ENGINE = System("engine in process", "engine_worker")


@dataclass(frozen=True, slots=True)
class _Stretch:
    traffic: Traffic
    cpu_seconds: float


def run_mixed(session: Session) -> list[Measurement]:
    """Return latencies by task, goodput and server CPU at rising rates; then HTTP beside the engine in process."""
    tasks = _tasks()
    adapters = session.adapters(session.decoder, "w3", tasks, Lora(rank=8))
    home = new_home(session, "w3")
    fill_registry(home, session.decoder, adapters)
    session.say("  open loop")
    with running_server(session, home, session.decoder) as server:
        rows = _rising_rates(session, server)
    session.say("  HTTP beside the engine in process")
    return [*rows, *_beside_engine(session, tasks, adapters)]


def _tasks() -> dict[str, AnyTask]:
    make: dict[str, Callable[[int], AnyTask]] = {
        "text-classification": lambda i: classifier((2, 5, 77, 151)[i % 4]),
        "question-answering": lambda _: answerer(),
        "summarization": lambda _: writer(MAX_NEW),
    }
    return {f"{task}-{i}": make[task](i) for task, n in NUM_ADAPTERS.items() for i in range(n)}


def draw_requests(count: int, seed: int) -> list[Request]:
    """Return requests in the mix's shares, each for an adapter and a text drawn evenly."""
    generator = random.Random(seed)
    short = [text for name in SETS for text in short_texts(name)]
    given: dict[str, list[dict[str, str]]] = {
        "text-classification": [{"text": text} for text in short],
        "question-answering": [
            {"question": each.question, "context": each.context} for each in questions()
        ],
        "summarization": [{"text": text} for text in abstracts()],
    }
    drawn = generator.choices(list(MIX), weights=list(MIX.values()), k=count)
    return [
        Request(
            task, f"{task}-{generator.randrange(NUM_ADAPTERS[task])}", generator.choice(given[task])
        )
        for task in drawn
    ]


def _rising_rates(session: Session, server: RunningServer) -> list[Measurement]:
    count = session.options.full_or_quick(NUM_AT_ONCE, 16)
    send_at_once(server.url, draw_requests(count, -1))  # every adapter is resident after this
    whole = send_at_once(server.url, draw_requests(count, -2))
    capacity = count / whole.seconds
    loads = LOADS[:2] if session.options.is_quick else LOADS
    seconds = session.options.full_or_quick(SECONDS, 1)

    def stretch(load: float) -> Callable[[int], _Stretch]:
        rate = capacity * load

        def run(round_number: int) -> _Stretch:
            before = server.cpu_seconds()
            requests = draw_requests(max(8, round(rate * seconds)), round_number)
            traffic = send_open_loop(server.url, requests, rate, round_number)
            return _Stretch(traffic, server.cpu_seconds() - before)

        return run

    given = run_rounds({f"{load:g}": stretch(load) for load in loads}, session.options.runs)
    return [row for load in loads for row in _rows(load, load * capacity, given[f"{load:g}"])]


def _rows(load: float, rate: float, stretches: Sequence[_Stretch]) -> list[Measurement]:
    name = f"W3 at {load:g} of capacity, {rate:.3g}/s"
    number = sum(NUM_ADAPTERS.values())
    rows = []
    for task in MIX:
        for percent in (50, 95, 99):
            given = [_percentile(each.traffic, task, percent) for each in stretches]
            if runs := [value for value in given if value is not None]:
                rows.append(measure(f"{name}, {task} p{percent}", "server", number, "ms", runs))
    good = [_goodput(each.traffic) for each in stretches]
    cores = [each.cpu_seconds / each.traffic.seconds for each in stretches]
    rows.append(measure(f"{name}, goodput", "server", number, "requests/s", good))
    rows.append(measure(f"{name}, server CPU", "server", number, "cores", cores))
    return rows


def _percentile(traffic: Traffic, task: str, percent: int) -> float | None:
    """Return a percentile of a task's latencies in ms, or None if nobody asked for that task."""
    values = sorted(answer.seconds * 1000 for answer in traffic.answers if answer.task == task)
    if not values:
        return None
    return values[min(len(values) - 1, len(values) * percent // 100)]


def _goodput(traffic: Traffic) -> float:
    good = [a for a in traffic.answers if a.is_ok and a.seconds <= GOOD_SECONDS]
    return len(good) / traffic.seconds


def _beside_engine(
    session: Session, tasks: dict[str, AnyTask], adapters: dict[str, str]
) -> list[Measurement]:
    """Send the same requests through HTTP and straight into the engine, which has core 0 to itself in both."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        session.note("W3: HTTP beside the engine needs two cores; left out")
        return []
    count = session.options.full_or_quick(NUM_AT_ONCE, 16)
    home = new_home(session, "w3-beside")
    fill_registry(home, session.decoder, adapters)
    order = replace(session.order(session.decoder, adapters), threads=1)
    with (
        _pinned({cores[1]}),
        session.start(ENGINE) as worker,
        running_server(session, home, session.decoder, threads=1) as server,
    ):
        worker.load(order)
        worker.pin({cores[0]})
        server.pin({cores[0]}, {cores[1]})
        seconds = _both(session, tasks, worker, server, count)
    return [
        measure("W3 all at once", name, len(adapters), "requests/s", [count / s for s in runs])
        for name, runs in seconds.items()
    ]


def _both(
    session: Session,
    tasks: dict[str, AnyTask],
    worker: Worker,
    server: RunningServer,
    count: int,
) -> dict[str, list[float]]:
    def through_http(round_number: int) -> float:
        traffic = send_at_once(server.url, draw_requests(count, round_number))
        if failed := sum(not answer.is_ok for answer in traffic.answers):
            session.note(f"W3: {failed} of {count} requests failed when all came at once")
        return traffic.seconds

    def in_process(round_number: int) -> float:
        requests = draw_requests(count, round_number)
        return worker.run(Work([_row(session, tasks, each) for each in requests])).seconds

    both = {"server": through_http, ENGINE.name: in_process}
    run_rounds(both, 1)
    return run_rounds(both, session.options.runs)


def _row(session: Session, tasks: dict[str, AnyTask], request: Request) -> WorkRow:
    model, task = session.decoder, tasks[request.adapter]
    parameters = task.Parameters.model_validate(PARAMETERS)
    given = task.Request.model_validate(request.given)
    encoded = task.encode(model.tokenizer, given, parameters, model.spec.max_tokens)
    generation = task.generation(model.tokenizer, parameters)
    if generation is None:
        return WorkRow(encoded.token_ids, request.adapter)
    return WorkRow(
        encoded.token_ids, request.adapter, generation.max_new_tokens, generation.end_ids
    )


@contextmanager
def _pinned(cores: set[int]) -> Iterator[None]:
    """Keep this process, which sends the requests, to some cores."""
    before = os.sched_getaffinity(0)
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)
