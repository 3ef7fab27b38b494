"""The scheduler: nobody is lost, nobody starves, the budget holds."""

from hypothesis import given
from hypothesis import strategies as st

from adapters.runtime.rows import Row
from adapters.runtime.scheduler import Scheduler

queues = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), max_size=40)


def filled(items):
    scheduler = Scheduler()
    rows = [Row(f"{i}", [0] * size, adapter) for i, (adapter, size) in enumerate(items)]
    for row in rows:
        scheduler.add(row)
    return scheduler, rows


@given(queues, st.integers(1, 40))
def test_every_row_comes_out_once_in_its_adapters_order_and_within_budget(items, budget):
    scheduler, rows = filled(items)
    seen = []
    while len(scheduler):
        taken = scheduler.take(budget, lambda row: True)
        assert taken
        assert len(taken) == 1 or sum(len(row.token_ids) for row in taken) <= budget
        seen += taken
    assert sorted(row.row_id for row in seen) == sorted(row.row_id for row in rows)
    for adapter in "abcd":
        ids = [int(row.row_id) for row in seen if row.adapter == adapter]
        assert ids == sorted(ids)


@given(st.integers(1, 200), st.integers(1, 8))
def test_a_flood_on_one_adapter_does_not_starve_another(flood, budget):
    scheduler, _ = filled([("a", 1)] * flood)
    scheduler.take(budget, lambda row: True)
    scheduler.add(Row("late", [0], "b"))
    taken = scheduler.take(budget, lambda row: True) + scheduler.take(budget, lambda row: True)
    assert "late" in [row.row_id for row in taken]


@given(queues, st.sets(st.integers(0, 39)))
def test_removed_rows_never_come_out(items, gone):
    scheduler, rows = filled(items)
    for row in rows:
        if int(row.row_id) in gone:
            assert scheduler.remove(row.row_id)
            assert not scheduler.remove(row.row_id)
    left = []
    while len(scheduler):
        left += scheduler.take(1000, lambda row: True)
    assert {int(row.row_id) for row in left} == set(range(len(rows))) - gone


def test_a_row_that_is_not_admitted_keeps_its_place():
    scheduler, rows = filled([("a", 3), ("b", 3), ("a", 3)])
    assert scheduler.take(100, lambda row: row.adapter == "b") == [rows[1]]
    assert scheduler.take(100, lambda row: True) == [rows[0], rows[2]]


def test_a_row_longer_than_the_budget_is_taken_when_it_comes_first():
    scheduler, rows = filled([("a", 50), ("b", 2)])
    assert scheduler.take(10, lambda row: True) == [rows[0]]
    assert scheduler.take(10, lambda row: True) == [rows[1]]


def test_dropping_an_adapter_gives_its_rows_back():
    scheduler, rows = filled([("a", 1), ("b", 1), ("a", 1)])
    assert scheduler.drop("a") == [rows[0], rows[2]]
    assert scheduler.drop("a") == []
    assert len(scheduler) == 1
