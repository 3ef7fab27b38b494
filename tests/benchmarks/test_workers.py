"""Workers: what a system prints does not matter, what breaks in it is said, and it ends with its owner."""

import pytest

from adapters.errors import InvalidRequest
from benchmarks.choice import chosen_workloads
from benchmarks.environments import Environment, PeerMissing, prepare_environment
from benchmarks.peers.wire import Load, Work, WorkRow
from benchmarks.serving import WORKLOADS
from benchmarks.workers import System, Worker

ENGINE = System("engine", "engine_worker")


@pytest.fixture
def worker(tmp_path):
    with Worker(ENGINE, tmp_path, tmp_path / "log") as worker:
        yield worker


def test_the_engine_answers_over_the_pipe(worker, decoder_folder):
    worker.load(Load(str(decoder_folder), "float32", 1, {}))
    outcome = worker.run(Work([WorkRow([5, 6, 7], None, 4), WorkRow([8], None, 2)]))
    assert [len(output) for output in outcome.outputs] == [4, 2]
    assert outcome.seconds > 0
    assert worker.pss_bytes() > 10 * 2**20


def test_a_system_that_can_not_load_says_why(worker, tmp_path):
    with pytest.raises(PeerMissing, match="nowhere"):
        worker.load(Load(str(tmp_path / "nowhere"), "float32", 1, {}))


def test_a_process_that_ended_is_missing(tmp_path):
    with (
        Worker(System("none", "no_such_worker"), tmp_path, tmp_path / "log") as worker,
        pytest.raises(PeerMissing, match="ended"),
    ):
        worker.run(Work([]))


def test_packages_that_can_not_be_installed_leave_a_peer_out(tmp_path, monkeypatch):
    (tmp_path / "odd.txt").write_text("./no/such/folder\n")
    monkeypatch.setattr("benchmarks.environments.PEERS", tmp_path)
    with pytest.raises(PeerMissing, match=r"odd\.log"):
        prepare_environment(Environment("odd"), tmp_path)


def test_rows_come_in_windows():
    rows = [WorkRow([i]) for i in range(5)]
    assert [len(window) for window in Work(rows, 2).windows()] == [2, 2, 1]
    assert Work(rows).windows() == [rows]


def test_workloads_are_chosen_by_name():
    assert chosen_workloads("W1, W6", WORKLOADS) == ["W1", "W6"]
    assert chosen_workloads(None, WORKLOADS) == list(WORKLOADS)
    with pytest.raises(InvalidRequest, match="'W9'"):
        chosen_workloads("W9", WORKLOADS)
