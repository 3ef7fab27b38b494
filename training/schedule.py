"""The learning rate of each step."""

from __future__ import annotations

import math

from training.contract import Schedule


def learning_rate(
    step: int, num_steps: int, peak: float, warmup_share: float, schedule: Schedule
) -> float:
    """Return a step's rate: up to ``peak`` over the warm-up, and then as the schedule has it.

    ``linear`` and ``cosine`` (half a wave; Loshchilov and Hutter, arXiv 1608.03983) go down to zero at the end.
    """
    warmup = max(1, round(warmup_share * num_steps))
    rising = min(1.0, (step + 1) / warmup)
    done = step / num_steps
    falling = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant": 1.0,
    }
    return peak * min(rising, falling[schedule])
