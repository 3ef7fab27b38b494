"""What goes into a step: order, budget, parts of long prompts, fairness between adapters."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.runtime.active import Active
from adapters.runtime.limits import Budget
from adapters.runtime.rows import Row
from adapters.runtime.scheduler import Scheduler
from adapters.tasks.base import Generation

WIDE = Budget(step=1000, chunk=256, fair=96)


def row(name, adapter, length=1, new=0, deadline=None):
    generation = Generation(new, (2,)) if new else None
    return Row(name, [5] * length, adapter, generation, deadline=deadline)


def scheduler_with(rows):
    scheduler = Scheduler()
    for each in rows:
        scheduler.add(each)
    return scheduler


def admit(row):
    return Active(row, blocks=[0] if row.generation else [])


def ids(parts):
    return [part.active.row.row_id for part in parts]


def test_adapters_take_turns_whatever_their_queues_hold():
    scheduler = scheduler_with(
        [row(f"a{i}", "a") for i in range(6)] + [row("b0", "b"), row("c0", "c")]
    )
    assert ids(scheduler.plan([], Budget(4, 4, 96), admit)) == ["a0", "b0", "c0", "a1"]


def test_rows_of_one_adapter_keep_their_order():
    scheduler = scheduler_with([row(f"{i}", "a") for i in range(5)])
    assert ids(scheduler.plan([], WIDE, admit)) == list("01234")


def test_an_adapter_that_may_not_run_waits_and_holds_nobody_up():
    scheduler = scheduler_with([row("a0", "a"), row("b0", "b")])
    parts = scheduler.plan([], WIDE, lambda r: admit(r) if r.adapter == "b" else None)
    assert ids(parts) == ["b0"]
    assert ids(scheduler.plan([], WIDE, admit)) == ["a0"]


def test_generating_rows_always_go_on_and_a_long_prompt_comes_in_parts():
    running = [
        Active(row(f"r{i}", "a", 4, new=9), [0], num_done=4, generated=[7]) for i in range(3)
    ]
    scheduler = scheduler_with([row("long", "a", 600, new=9)])
    seen = []
    for _ in range(3):
        parts = scheduler.plan(running, WIDE, admit)
        assert ids(parts)[:3] == ["r0", "r1", "r2"]
        seen.append(parts[3].num_new)
        running = [part.active for part in parts]
        parts[3].active.num_done += parts[3].num_new
    assert seen == [256, 256, 88]


def test_an_indivisible_row_longer_than_the_budget_goes_alone():
    scheduler = scheduler_with([row("long", "a", 3000), row("b", "b", 10)])
    assert ids(scheduler.plan([], WIDE, admit)) == ["long"]
    assert ids(scheduler.plan([], WIDE, admit)) == ["b"]


def test_steps_are_short_while_one_adapter_is_behind_another():
    flood = [
        Active(row(f"a{i}", "a", 4, new=99), [0], num_done=4, generated=[7]) for i in range(60)
    ]
    late = Active(row("b", "b", 4, new=99), [0], num_done=4, generated=[7])
    scheduler = Scheduler()
    budget = Budget(step=1000, chunk=64, fair=16)
    sizes = [len(scheduler.plan([*flood, late], budget, admit)) for _ in range(20)]
    assert sizes[0] == 61
    assert sizes[5:] == [16] * 15
    for _ in range(5):
        assert "b" in ids(scheduler.plan([*flood, late], budget, admit))


def test_an_adapter_that_asked_for_little_does_not_hold_others_up_for_long_later():
    """It is behind as long as others ask for more, but what it did not ask for it can't have afterwards."""
    flood = [
        Active(row(f"a{i}", "a", 4, new=99), [0], num_done=4, generated=[7]) for i in range(60)
    ]
    single = Active(row("b", "b", 4, new=99), [0], num_done=4, generated=[7])
    scheduler = Scheduler()
    budget = Budget(step=1000, chunk=64, fair=16)
    for _ in range(500):
        scheduler.plan([*flood, single], budget, admit)
    for i in range(200):
        scheduler.add(row(f"late-{i}", "b", 50, new=9))
    waited, parts = 0, []
    while not any(part.active in flood for part in parts):
        parts = scheduler.plan([*flood, single], budget, admit)
        waited += 1
    assert waited <= 4 * budget.chunk / budget.fair + 2


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=40),
    st.integers(1, 60),
)
def test_every_row_is_taken_once_in_its_adapters_order_within_the_budget(rows, budget):
    scheduler = scheduler_with([row(f"{i}", a, n) for i, (a, n) in enumerate(rows)])
    taken, running = [], []
    while len(scheduler) or running:
        admitted = []

        def take(r, admitted=admitted):
            admitted.append(admit(r))
            return admitted[-1]

        parts = scheduler.plan(running, Budget(budget, budget, 96), take)
        assert parts
        total = sum(part.num_new for part in parts)
        assert total <= budget or len(parts) == 1
        running = [a for a in [*running, *admitted] if a not in [p.active for p in parts]]
        taken += [part.active.row for part in parts]
    assert sorted(int(r.row_id) for r in taken) == list(range(len(rows)))
    for adapter in "abcd":
        mine = [int(r.row_id) for r in taken if r.adapter == adapter]
        assert mine == sorted(mine)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(20, 200))
def test_adapters_with_enough_rows_get_equal_shares(lengths, budget):
    scheduler = scheduler_with(
        [row(f"{a}-{i}", a, n) for a, n in enumerate(lengths) for i in range(600 // n + 1)]
    )
    served = Counter()
    for _ in range(3):
        for part in scheduler.plan([], Budget(budget, budget, 10**6), admit):
            served[part.active.row.adapter] += part.num_new
    # What is left of a step may be too little for a long row; nobody loses more than that.
    fair = sum(served.values()) / len(lengths)
    assert min(served[a] for a in range(len(lengths))) >= fair - 3 * max(lengths)


def test_a_cancelled_row_is_gone():
    scheduler = scheduler_with([row("a0", "a"), row("a1", "a"), row("b0", "b")])
    assert scheduler.remove("a0")
    assert not scheduler.remove("a0")
    assert ids(scheduler.plan([], WIDE, admit)) == ["a1", "b0"]


def test_rows_past_their_deadline_come_out():
    scheduler = scheduler_with(
        [row("a", "a", deadline=5.0), row("b", "a", deadline=9.0), row("c", "a")]
    )
    assert [r.row_id for r in scheduler.expired(7.0)] == ["a"]
    assert ids(scheduler.plan([], WIDE, admit)) == ["b", "c"]


def test_an_adapter_that_waits_for_its_weights_does_not_shorten_the_steps():
    running = [
        Active(row(f"a{i}", "a", 4, new=99), [0], num_done=4, generated=[7]) for i in range(60)
    ]
    scheduler = scheduler_with([row("b", "b")])
    budget = Budget(step=1000, chunk=64, fair=16)
    for _ in range(20):
        assert len(scheduler.plan(running, budget, lambda r: None)) == 60


def test_an_adapter_that_was_served_before_it_was_refused_is_not_new():
    """Rows that end at once leave nothing running by which their adapter would be known."""
    scheduler = scheduler_with([row(f"a{i}", "a", 40, new=1) for i in range(50)])
    generating = Active(row("b", "b", 4, new=99), [0], num_done=4, generated=[7])
    sizes = []
    for _ in range(7):
        places = iter([True])  # one a step
        parts = scheduler.plan(
            [generating],
            Budget(1000, 100, 20),
            lambda each, places=places: admit(each) if next(places, False) else None,
        )
        sizes.append(sum(part.num_new for part in parts))
    assert sizes == [41] * 6 + [20]


@pytest.mark.parametrize("room", [2, 8, 15])
def test_a_prompt_goes_on_however_little_room_steps_have(room):
    scheduler = scheduler_with([row("long", "a", 60, new=1)])
    generating = Active(row("b", "b", 4, new=99), [0], num_done=4, generated=[7])
    parts = scheduler.plan([generating], Budget(room, 256, room), admit)
    assert {part.active.row.row_id: part.num_new for part in parts} == {"b": 1, "long": 16}
