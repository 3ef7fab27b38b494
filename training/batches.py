"""Rows into batches of a token budget; nothing is padded, so the budget is what a step costs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapters.tasks.base import Labelled


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
        for batch in _fill(order, batch_tokens):
            total += sum(len(row.token_ids) for row in batch)
            if max_tokens is not None and total > max_tokens and batches:
                return batches
            batches.append(sorted(batch, key=lambda row: len(row.token_ids)))
    return batches


def _fill(rows: Sequence[Labelled], batch_tokens: int) -> list[list[Labelled]]:
    batches: list[list[Labelled]] = [[]]
    room = batch_tokens
    for row in rows:
        if batches[-1] and len(row.token_ids) > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= len(row.token_ids)
    return batches
