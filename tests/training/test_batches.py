"""Batches: every row once an epoch, within the token budget, shortest first, the same for the same seed."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.tasks.base import Labelled
from training.batches import make_batches

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


def rows_of(lengths):
    return [Labelled([i] * length, [i]) for i, length in enumerate(lengths)]


def batches_of(lengths, budget=64, *, seed=0, epochs=1, max_tokens=None):
    return make_batches(rows_of(lengths), budget, seed=seed, epochs=epochs, max_tokens=max_tokens)


def ids(batches):
    return [[row.labels[0] for row in batch] for batch in batches]


def tokens(batch):
    return sum(len(row.token_ids) for row in batch)


@seeded
@given(lengths, st.integers(1, 80), st.integers(0, 9), st.integers(1, 3))
def test_every_row_comes_once_an_epoch_in_full_batches_within_the_budget(
    lengths, budget, seed, epochs
):
    batches = batches_of(lengths, budget, seed=seed, epochs=epochs)
    seen = [number for batch in ids(batches) for number in batch]
    assert Counter(seen) == Counter(dict.fromkeys(range(len(lengths)), epochs))
    for epoch in range(epochs):
        part = seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))
    for batch in batches:
        assert tokens(batch) <= budget or len(batch) == 1
        sizes = [len(row.token_ids) for row in batch]
        assert sizes == sorted(sizes)
    if epochs == 1:  # no neighbour's rows would all have fitted in as well
        for left, right in pairwise(batches):
            assert tokens(left) + len(right[-1].token_ids) > budget


@seeded
@given(lengths, st.integers(1, 80), st.integers(0, 9))
def test_the_same_arguments_give_the_same_batches(lengths, budget, seed):
    assert ids(batches_of(lengths, budget, seed=seed, epochs=2)) == ids(
        batches_of(lengths, budget, seed=seed, epochs=2)
    )


def test_seeds_and_epochs_shuffle_differently():
    first, second = (ids(batches_of([8] * 40, 64, seed=seed, epochs=2)) for seed in (0, 1))
    assert first != second
    assert first[:5] != first[5:]


@seeded
@given(lengths, st.integers(1, 80), st.integers(1, 500))
def test_the_token_limit_ends_the_run_early_at_the_same_batches(lengths, budget, limit):
    whole = batches_of(lengths, budget, epochs=2)
    cut = batches_of(lengths, budget, epochs=2, max_tokens=limit)
    spent = sum(map(tokens, cut))
    assert ids(cut) == ids(whole)[: len(cut)]
    assert spent <= limit or len(cut) == 1
    assert len(cut) == len(whole) or spent + tokens(whole[len(cut)]) > limit


@pytest.mark.parametrize(("budget", "count"), [(10, 4), (19, 4), (20, 2), (40, 1), (9, 4)])
def test_a_batch_takes_as_many_rows_as_fit(budget, count):
    assert len(batches_of([10] * 4, budget)) == count


def test_the_callers_rows_keep_their_order():
    rows = rows_of(range(1, 20))
    before = list(rows)
    make_batches(rows, 64, seed=0, epochs=2, max_tokens=None)
    assert rows == before
