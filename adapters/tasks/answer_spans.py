"""Which span of a text answers a question best, and from which odds on there is no answer at all.

Shape letters: N tokens that an answer can lie in, Q questions; 2 stands for start and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.tasks.base import Encoded, RowOutput

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """The best span of a row, first to last token among those that can be an answer, both in it.

    Args:
        log_probability: of its start plus that of its end, as in the BERT paper (Devlin et al., arXiv 1810.04805,
            section 4.2), over those tokens and the one for no answer.
        no_answer: the same sum for the token that stands for no answer; None where the row has none.
    """

    first: int
    last: int
    log_probability: float
    no_answer: float | None = None

    @property
    def no_answer_score(self) -> float | None:
        """How much likelier no answer is than this one, as a difference of logarithms."""
        return None if self.no_answer is None else self.no_answer - self.log_probability


def best_span(logits_N2: Floats, max_tokens: int, no_answer_2: Floats | None = None) -> AnswerSpan:
    """Return the likeliest span of at most ``max_tokens``."""
    log_N2 = _log_softmax(logits_N2, no_answer_2)
    best, best_score = (0, 0), -np.inf
    for first in range(len(logits_N2)):
        ends = log_N2[first : min(first + max_tokens, len(logits_N2)), 1]
        last = int(np.argmax(ends))
        score = float(log_N2[first, 0] + ends[last])
        if score > best_score:
            best, best_score = (first, first + last), score
    none = None if no_answer_2 is None else float(log_N2[-1].sum())
    return AnswerSpan(*best, best_score, none)


def best_of_windows(
    parts: Sequence[Encoded], outputs: Sequence[RowOutput], max_tokens: int
) -> tuple[int, AnswerSpan]:
    """Return the window with the likeliest span, and that span.

    Every window also weighs that it holds no answer, so one without it gives each of its spans a small probability.
    """
    spans = [
        _best_of_row(part, output, max_tokens) for part, output in zip(parts, outputs, strict=True)
    ]
    best = max(range(len(spans)), key=lambda i: spans[i].log_probability)
    return best, spans[best]


def _best_of_row(part: Encoded, output: RowOutput, max_tokens: int) -> AnswerSpan:
    assert output.logits is not None
    none = None if part.no_answer is None else output.logits[part.no_answer]
    return best_span(output.logits[slice(*part.read)], max_tokens, none)


def _log_softmax(logits_N2: Floats, no_answer_2: Floats | None) -> Floats:
    """Return log-probabilities; the row for no answer, if there is one, comes last."""
    rows = logits_N2 if no_answer_2 is None else np.concatenate([logits_N2, no_answer_2[None]])
    shifted = rows.astype(np.float64) - rows.max(axis=0)
    return shifted - np.log(np.exp(shifted).sum(axis=0))


def tune_threshold(
    no_answer_scores: Sequence[float],
    f1_if_answered: Sequence[float],
    f1_if_not: Sequence[float],
) -> float:
    """Return the no-answer score above which a question should stay unanswered, for the best mean F1.

    As SQuAD's evaluate-v2.0.py finds its best threshold, but halfway between two scores, where a rounding error
    turns no answer over. Of equally good ones, that closest to 0.
    """
    order = np.argsort(no_answer_scores, kind="stable")
    scores_Q = np.asarray(no_answer_scores, dtype=np.float64)[order]
    gains_Q = (np.asarray(f1_if_answered) - np.asarray(f1_if_not))[order]
    totals = np.concatenate([[0.0], np.cumsum(gains_Q)])  # the k with the lowest scores answered
    borders = np.concatenate([[scores_Q[0] - 2], scores_Q, [scores_Q[-1] + 2]])
    low, high = borders[:-1], borders[1:]
    # 0, where it parts the same questions as the middle does, with as much room on both sides as a rounding error.
    thresholds = np.where((low < -1e-3) & (high > 1e-3), 0.0, (low + high) / 2)
    totals = np.where(low < high, totals, -np.inf)  # equal scores can't be parted
    equally_good = np.flatnonzero(totals >= totals.max() - 1e-9)
    return float(min(thresholds[equally_good], key=abs))
