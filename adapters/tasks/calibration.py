"""What validation rows decide of a classifier: a temperature, so that probabilities mean what they say, and thresholds.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
_COLDEST, _HOTTEST = 0.05, 20.0


def softmax(logits: Array) -> Array:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    total: Array = shifted / shifted.sum(-1, keepdims=True)
    return total


def sigmoid(logits: Array) -> Array:
    """Return probabilities, each for itself."""
    bounded: Array = 0.5 * (1 + np.tanh(0.5 * logits))  # does not overflow
    return bounded


def fit_temperature(
    logits_NC: Array, labels_N: np.ndarray[Any, np.dtype[np.int64]]
) -> float | None:
    """Return the temperature of the least negative log-likelihood (Guo et al., arXiv 1706.04599), by golden section.

    The likelihood has one optimum in 1 / temperature, but none if all rows are right, for then the coldest is the
    likeliest, which would make every score 1: None.
    """
    rows_N = np.arange(len(labels_N))
    if (logits_NC.argmax(1) == labels_N).all():
        return None

    def loss(log_temperature: float) -> float:
        scaled_NC = logits_NC / np.exp(log_temperature)
        shifted_NC = scaled_NC - scaled_NC.max(1, keepdims=True)
        log_total_N = np.log(np.exp(shifted_NC).sum(1))
        return float((log_total_N - shifted_NC[rows_N, labels_N]).mean())

    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-5:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def best_f1_threshold(
    scores_N: Array, is_right_N: np.ndarray[Any, np.dtype[np.bool_]]
) -> float | None:
    """Return the threshold at or above which calling a label right gives the best F1; None if it never is right.

    It lies halfway between two scores that occur, of equals the highest.
    """
    if not is_right_N.any():
        return None
    order_N = np.argsort(-scores_N, kind="stable")
    scores_N, right_N = scores_N[order_N], is_right_N[order_N].cumsum()
    called_N = np.arange(1, len(scores_N) + 1)
    f1_N = 2 * right_N / (called_N + is_right_N.sum())
    is_last_N = np.append(scores_N[1:] < scores_N[:-1], True)  # equal scores are called together
    best = int(np.argmax(np.where(is_last_N, f1_N, -1)))
    following = scores_N[best + 1] if best + 1 < len(scores_N) else 0.0
    return float((scores_N[best] + following) / 2)
