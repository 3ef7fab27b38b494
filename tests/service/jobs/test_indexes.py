"""What is asked of a long history reads what it gives, and not the history: the plans of the queries that are sent."""

from datetime import timedelta

import pytest
from sqlalchemy import event, insert, text

from adapters.errors import Overloaded
from adapters.registry.tables import now
from service.jobs.files import Files
from service.jobs.objects import ObjectStore
from service.jobs.tables import FileTable, JobTable
from tests.service.jobs.test_queue import PLAN, submit

_MANY = 5000  # enough that a planner with statistics would rather take an index than read them all
_DAYS_AGO = now() - timedelta(days=2)


@pytest.fixture
def history(database, queue):
    """A namespace with many jobs that have ended, and many files, one of each still in use."""
    common = {
        "order": {"training_file": "file-0"},
        "plan": PLAN.model_dump(mode="json"),
        "created_at": _DAYS_AGO,
    }
    ended = {"namespace": "default", "key": "k", "status": "succeeded", "finished_at": _DAYS_AGO}
    jobs = [{"id": f"ftjob-{i}", **ended, **common} for i in range(_MANY)]
    file = {"namespace": "default", "purpose": "fine-tune", "num_bytes": 1, "sha256": "0" * 64}
    sent = {"filename": "a.csv", "created_at": _DAYS_AGO, **file}
    with database.write() as session:
        session.execute(insert(JobTable), jobs)
        session.execute(insert(FileTable), [{"id": f"file-{i}", **sent} for i in range(_MANY)])
        if database.is_shared:  # what PostgreSQL does by itself after a while, and SQLite never
            session.execute(text("ANALYZE"))
    submit(queue, key="k")


@pytest.fixture
def plans(database, history):
    """Return what gives the plans of all queries that an act sends."""

    def of(act):
        sent = []

        def note(connection, cursor, statement, parameters, *_):
            if statement.startswith("SELECT") and "FROM" in statement:
                sent.append((statement, parameters))

        event.listen(database._engine, "before_cursor_execute", note)
        try:
            act()
        finally:
            event.remove(database._engine, "before_cursor_execute", note)
        explain = "EXPLAIN" if database.is_shared else "EXPLAIN QUERY PLAN"
        with database._engine.connect() as connection:
            found = [
                connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
                for statement, parameters in sent
            ]
        return [" ".join(str(row[-1]) for row in rows) for rows in found]

    return of


def test_a_claim_reads_the_job_that_is_next(queue, plans):
    (plan,) = plans(lambda: queue.claim("w", ["process"]))
    assert "ix_jobs_next" in plan
    assert "TEMP B-TREE" not in plan


def test_whether_there_is_work_is_asked_of_jobs_that_have_not_ended(queue, plans):
    (plan,) = plans(lambda: queue.has_work(["process"]))
    assert "ix_jobs_next" in plan


def test_quotas_count_the_jobs_that_have_not_ended(queue, plans):
    def order():
        with pytest.raises(Overloaded):
            submit(queue, key="k", most_active=9, most_of_key=1)

    of_namespace, of_key = [plan for plan in plans(order) if "jobs" in plan]
    assert "ix_jobs_ended" in of_namespace
    assert "ix_jobs_ended" in of_key


def test_a_file_is_looked_for_in_jobs_that_have_not_ended(database, tmp_path, plans):
    files = Files(database, ObjectStore(str(tmp_path)))
    _, active = plans(lambda: files.delete("file-2"))
    assert "ix_jobs_ended" in active


def test_old_jobs_are_found_by_their_end(queue, plans):
    plan = plans(lambda: queue.forget(_DAYS_AGO))[0]
    assert "ix_jobs_ended" in plan


@pytest.mark.parametrize("after", [None, "file-7"])
def test_pages_of_files_come_in_the_order_of_their_index(database, tmp_path, plans, after):
    files = Files(database, ObjectStore(str(tmp_path)))
    plan = plans(lambda: files.list_files(after=after))[-1]
    assert "ix_files_sent" in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan
