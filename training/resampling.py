"""How sure a metric is: intervals by the bootstrap over rows (Efron 1979), from what each row adds to the metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import eye_array

from adapters.tasks.metrics import Array, Tally

Interval = tuple[float, float]
_RESAMPLES = 1000
_NUMBERS = 2_000_000  # at a time, so that many rows take no more memory
_ROWS = 10_000  # at a time


def intervals(tally: Tally, *, seed: int = 0, level: float = 0.95) -> dict[str, Interval]:
    """Return each metric's percentile interval over 1,000 resamples of the rows; none for no rows.

    Resamples without any row that a metric is about, such as questions without an answer, tell nothing of it.
    """
    if not tally.num_rows:
        return {}
    tails = [50 * (1 - level), 50 * (1 + level)]
    values: dict[str, list[Array]] = {}
    for counts_RN in _resamples(tally.num_rows, seed):
        for name, value_R in tally.weigh(counts_RN).items():
            values.setdefault(name, []).append(value_R)
    bounds = {name: np.nanpercentile(np.concatenate(each), tails) for name, each in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def row_scores(tally: Tally, metric: str) -> list[float]:
    """Return a metric of each row alone, for a tally that only multiplies by the counts and sums them."""
    values: list[float] = []
    # Sparse, or all rows would be read for each of them.
    alone_NN: Any = eye_array(tally.num_rows, format="csr")
    for start in range(0, tally.num_rows, _ROWS):
        values += tally.weigh(alone_NN[start : start + _ROWS])[metric].tolist()
    return values


def _resamples(num_rows: int, seed: int) -> Iterator[Array]:
    """Yield how often each row is drawn, some resamples at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, _NUMBERS // num_rows)
    for start in range(0, _RESAMPLES, size):
        drawn = rng.multinomial(
            num_rows, np.full(num_rows, 1 / num_rows), min(size, _RESAMPLES - start)
        )
        yield drawn.astype(np.float64)
