"""W1 counts the better of vLLM's two forms, whichever that is."""

import pytest
from rich.console import Console

from benchmarks.contest import Contestant, Result
from benchmarks.peers.wire import Outcome, Work
from benchmarks.session import Options, Session
from benchmarks.workloads.decode import BARE, VLLM_COMPILED, VLLM_EAGER, better_vllm


def result(system, seconds):
    rounds = [Outcome(each, []) for each in seconds]
    return Result(Contestant(system, {}, 0, lambda _: Work([])), rounds[0], rounds)


@pytest.mark.parametrize(
    ("eager", "compiled", "kept"),
    [([3, 4, 9], [5, 5, 5], VLLM_EAGER), ([3, 4, 9], [3, 3, 9], VLLM_COMPILED)],
)
def test_the_faster_form_stays(tmp_path, eager, compiled, kept):
    session = Session(Options(), tmp_path, tmp_path, Console(quiet=True))
    results = [result(BARE, [1]), result(VLLM_EAGER, eager), result(VLLM_COMPILED, compiled)]
    left = better_vllm(session, results)
    assert [each.contestant.system for each in left] == [BARE, kept]
    assert "slower form" in session.notes[0]


def test_one_form_alone_stays(tmp_path):
    session = Session(Options(), tmp_path, tmp_path, Console(quiet=True))
    results = [result(BARE, [1]), result(VLLM_EAGER, [1])]
    assert better_vllm(session, results) == results
