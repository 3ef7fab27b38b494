"""What ``auto`` stands for in a run's settings, from its rows and its backbone's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.tasks.base import Labelled
from training.contract import FitSettings

# A rate that suits LoRA on a backbone of this width; wider ones want less, by the square root.
_RATE, _WIDTH = 1e-3, 576
_TOKENS = 200_000  # as many, or ten epochs: what a small data set needs to be learned
_MOST_EPOCHS = 10
_STEPS = 300  # at least about so many, or the schedule has no room
_LEAST_BATCH = 16
_FEWEST_TOKENS, _MOST_TOKENS = 256, 4096  # of a step


@dataclass(frozen=True, slots=True)
class FitPlan:
    """The optimisation in numbers."""

    learning_rate: float
    epochs: int
    batch_tokens: int


def plan_fit(settings: FitSettings, rows: Sequence[Labelled], hidden_size: int) -> FitPlan:
    """Return the settings' own numbers, and for each ``auto`` one that fits the rows and the backbone.

    Args:
        hidden_size: the backbone's width.
    """
    tokens = max(1, sum(len(row.token_ids) for row in rows))
    epochs = _epochs(tokens) if settings.epochs == "auto" else settings.epochs
    total = min(tokens * epochs, settings.max_tokens or tokens * epochs)
    batch_tokens = (
        _batch_tokens(total) if settings.batch_tokens == "auto" else settings.batch_tokens
    )
    if settings.batch_rows is not None:
        batch_tokens = max(_LEAST_BATCH, round(settings.batch_rows * tokens / len(rows)))
    rate = (
        round(_RATE * math.sqrt(_WIDTH / hidden_size), 6)
        if settings.learning_rate == "auto"
        else settings.learning_rate
    )
    return FitPlan(rate * settings.rate_factor, epochs, batch_tokens)


def _epochs(num_tokens: int) -> int:
    return max(1, min(_MOST_EPOCHS, math.ceil(_TOKENS / num_tokens)))


def _batch_tokens(num_tokens: int) -> int:
    share = round(num_tokens / _STEPS / _FEWEST_TOKENS) * _FEWEST_TOKENS
    return max(_FEWEST_TOKENS, min(_MOST_TOKENS, share))
