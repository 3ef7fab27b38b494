"""A contest goes on without those that can't take part, and says so."""

import pytest
from rich.console import Console

from benchmarks.contest import Contestant, compete
from benchmarks.peers.wire import Work, WorkRow
from benchmarks.session import Options, Session
from benchmarks.workers import System

GOOD = System("engine", "engine_worker")
ABSENT = System("absent", "no_such_worker")


@pytest.fixture
def session(tmp_path, decoder_folder):
    options = Options(str(decoder_folder), dtype="float32", threads=1, runs=2)
    return Session(options, tmp_path, tmp_path, Console(quiet=True))


def work_of(round_number):
    return Work([WorkRow([5, 6, 7], None, 3)])


def fails_later(round_number):
    """Ask for more tokens than the backbone has room for, once it is warm."""
    return Work([WorkRow([5, 6, 7], None, 3 if round_number < 0 else 10**6)])


def test_a_system_that_does_not_start_or_fails_later_is_left_out_with_a_line(session):
    contestants = [
        Contestant(GOOD, {}, 0, work_of),
        Contestant(ABSENT, {}, 0, work_of),
        Contestant(System("late", "engine_worker"), {}, 0, fails_later),
    ]
    (result,) = compete(session, session.decoder, contestants)
    assert result.contestant.system is GOOD
    assert len(result.rounds) == 2
    assert result.pss_bytes > 0
    assert [note.split(":")[0] for note in session.notes] == [
        "absent is left out",
        "late is left out",
    ]


def test_a_system_that_answers_garbage_is_not_timed(session):
    contestants = [Contestant(GOOD, {}, 0, work_of)]
    results = compete(
        session, session.decoder, contestants, lambda results: {results[0].contestant.key: 0.1}
    )
    assert results == []
    assert "only 10.0% of its outputs" in session.notes[0]
