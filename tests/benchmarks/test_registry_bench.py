"""``headstock bench registry``, small, on SQLite: what needs no server gives its rows; none is timed."""

import json

import pytest
from rich.console import Console

from adapters.errors import EnvironmentProblem, InvalidRequest
from adapters.registry.database import Database
from benchmarks.choice import chosen_workloads
from benchmarks.registry import WORKLOADS, run_registry
from benchmarks.session import Options, Session
from benchmarks.workloads import claiming
from benchmarks.workloads.databases import open_databases
from service.demo import free_port

WANTED = {
    "R2 adapters, last 1000": {"SQLite, registry", "SQLite, HTTP"},
    "R2 versions, middle 100": {"SQLite, registry", "SQLite, HTTP"},
    "R2 an adapter with its newest versions": {"SQLite, registry", "SQLite, HTTP"},
    "R3 claims by 2 workers": {"SQLite"},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory, decoder_folder):
    root = tmp_path_factory.mktemp("bench")
    (root / "scratch").mkdir()
    options = Options(str(decoder_folder), dtype="float32", threads=1, runs=1, is_quick=True)
    return Session(options, root / "home", root / "scratch", Console(quiet=True))


@pytest.fixture(scope="module")
def saved(session):
    path = session.home / "report.json"
    run_registry(session, ["R2", "R3"], None, path)
    return json.loads(path.read_text())


def test_the_report_has_the_form_of_all_benchmarks(saved):
    assert set(saved) == {"machine", "versions", "commit", "rows"}
    assert {"headstock", "SQLite"} <= set(saved["versions"])
    for row in saved["rows"]:
        assert row["value"] > 0
        assert len(row["runs"]) == 1


@pytest.mark.parametrize("workload", WANTED)
def test_each_workload_has_its_systems(saved, workload):
    rows = [row for row in saved["rows"] if row["workload"] == workload]
    assert {row["system"] for row in rows} == WANTED[workload]
    assert all(len(row["ratios"]) == len(rows) - 1 for row in rows)


def test_a_workload_that_is_not_there_is_refused():
    assert chosen_workloads(None, WORKLOADS) == ["R1", "R2", "R3", "R4"]
    with pytest.raises(InvalidRequest, match="No workload 'R9'"):
        chosen_workloads("R2,R9", WORKLOADS)


def test_without_a_database_postgresql_is_left_out_and_the_reader_is_told(saved, session):
    assert any("PostgreSQL is left out" in note for note in session.notes)


def test_a_job_that_is_claimed_twice_ends_the_benchmark(tmp_path):
    class TwicePool:
        """Gives each worker the same job."""

        def submit(self, claim):
            return self

        def result(self):
            return claiming.Claimed(["ftjob-1"], 0.0, 1.0, 0)

    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    with pytest.raises(RuntimeError, match="Of 2 jobs, 1 were claimed, in 2 claims"):
        claiming._round(TwicePool(), [None, None], database, 2)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "nothing"])
def test_only_postgresql_is_taken_as_the_other_database(tmp_path, url):
    with pytest.raises(InvalidRequest), open_databases(tmp_path, url):
        pass


def test_a_database_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed (make test-backends does it).")
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    with (
        pytest.raises(EnvironmentProblem, match="Can't open the database") as told,
        open_databases(tmp_path, url),
    ):
        pass
    assert "\n" not in told.value.message
