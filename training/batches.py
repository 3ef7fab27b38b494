"""Rows into batches of a token budget; nothing is padded, so the budget is what a step costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from adapters.tasks.base import Labelled

ItemT = TypeVar("ItemT")


def make_batches(
    rows: Sequence[Labelled], batch_tokens: int, *, seed: int, epochs: int, max_tokens: int | None
) -> list[list[Labelled]]:
    """Return the run's batches in order; the same arguments give the same batches.

    Each epoch is shuffled anew. A row longer than the budget makes a batch of its own. Within a batch,
    rows go shortest first, as `pack_rows` wants them.
    """
    rng = random.Random(seed)
    batches: list[list[Labelled]] = []
    total = 0
    for _ in range(epochs):
        order = list(rows)
        rng.shuffle(order)
        for batch in fill_batches(order, _num_tokens, batch_tokens):
            total += sum(map(_num_tokens, batch))
            if max_tokens is not None and total > max_tokens and batches:
                return batches
            batches.append(sorted(batch, key=_num_tokens))
    return batches


def fill_batches(
    items: Sequence[ItemT], num_tokens: Callable[[ItemT], int], batch_tokens: int
) -> list[list[ItemT]]:
    """Return the items in their order, as many at a time as a budget of tokens allows, and at least one."""
    batches: list[list[ItemT]] = [[]]
    room = batch_tokens
    for item in items:
        if batches[-1] and num_tokens(item) > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(item)
        room -= num_tokens(item)
    return batches


def _num_tokens(row: Labelled) -> int:
    return len(row.token_ids)
