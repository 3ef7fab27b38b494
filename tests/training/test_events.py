"""The event log: numbered, whole lines, going on where an earlier run stopped; progress with a pace."""

from types import SimpleNamespace

import pytest

from training import events
from training.contract import Event, EventKind
from training.events import EventLog


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(events, "time", SimpleNamespace(time=lambda: 1.7e9, monotonic=clock))
    return clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def read(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [Event.model_validate_json(line) for line in lines]


def test_events_are_numbered_from_one_and_keep_kind_message_and_data(path, clock):
    log = EventLog(path)
    log.emit(EventKind.STARTED, "Begins\nnow", task="x", nested={"a": [1]})
    log.emit(EventKind.WARNING, "Zürich 北京")
    first, second = read(path)
    assert first == Event(
        number=1,
        time=1.7e9,
        kind="started",
        message="Begins\nnow",
        data={"task": "x", "nested": {"a": [1]}},
    )
    assert (second.number, second.kind, second.message) == (2, "warning", "Zürich 北京")


@pytest.mark.parametrize(
    "last",
    [
        "plain",
        "two\nlines",
        *[
            pytest.param(
                f"a{mark}b",
            )
            for mark in "\u2028\x85"
        ],
    ],
    ids=ascii,
)
def test_a_resumed_run_goes_on_with_the_next_number(path, last):
    EventLog(path).emit(EventKind.STARTED, "one")
    EventLog(path).emit(EventKind.PAUSED, last)
    EventLog(path).emit(EventKind.STARTED, "three")
    assert [event.number for event in read(path)] == [1, 2, 3]


def test_an_empty_file_begins_at_one(path):
    path.touch()
    EventLog(path).emit(EventKind.STARTED, "one")
    assert read(path)[0].number == 1


def test_a_run_killed_while_it_wrote_can_be_resumed(path):
    EventLog(path).emit(EventKind.STARTED, "one")
    with path.open("a") as file:
        file.write('{"number":2,"ti')
    EventLog(path).emit(EventKind.STARTED, "two")
    assert '"number":2' in path.read_text().splitlines()[-1]


def test_a_stage_is_announced_and_its_seconds_add_up(path, clock):
    log = EventLog(path)
    for seconds in (3, 4):
        with log.stage("fit", "Training"):
            clock.now += seconds
    assert log.seconds == {"fit": 7.0}
    assert [(e.kind, e.message, e.data) for e in read(path)] == 2 * [
        ("stage", "Training", {"stage": "fit"})
    ]


def test_progress_is_told_at_most_twice_a_second_and_always_at_the_end(path, clock):
    progress = EventLog(path).progress("fit", 100)
    for done in range(1, 101):
        clock.now += 0.125
        progress.update(done)
    told = [event.data["done"] for event in read(path)]
    assert told == list(range(4, 101, 4))
    progress.update(100)
    assert read(path)[-1].number == len(told) + 1


def test_progress_tells_the_time_left_at_the_pace_so_far(path, clock):
    progress = EventLog(path).progress("fit", 40)
    clock.now += 5
    progress.update(10, loss=0.5)
    (event,) = read(path)
    assert (event.kind, event.message) == ("progress", "fit 10/40")
    assert event.data == {"stage": "fit", "done": 10, "total": 40, "eta_seconds": 15.0, "loss": 0.5}


def test_progress_of_nothing_has_no_time_left_to_tell(path, clock):
    progress = EventLog(path).progress("fit", 40)
    clock.now += 5
    progress.update(0)
    assert read(path)[0].data["eta_seconds"] is None
