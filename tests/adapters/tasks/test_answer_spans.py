"""The best span against all spans tried, and the best threshold against SQuAD's own search for it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.tasks.answer_spans import best_of_windows, best_span, tune_threshold
from adapters.tasks.base import Encoded, RowOutput

pairs = st.tuples(*[st.floats(-20, 20, width=32)] * 2)
seeded = settings(max_examples=200, deadline=None, derandomize=True)


@seeded
@given(st.lists(pairs, min_size=1, max_size=20), st.integers(1, 25), st.none() | pairs)
def test_the_best_span_is_the_one_found_by_trying_them_all(rows, limit, none):
    logits = np.array(rows, np.float32)
    everything = np.array([*rows, none] if none else rows, np.float64)
    start, end = (np.exp(everything[:, i]) / np.exp(everything[:, i]).sum() for i in (0, 1))
    spans = {
        (i, j): start[i] * end[j]
        for i in range(len(rows))
        for j in range(i, min(i + limit, len(rows)))
    }
    found = best_span(logits, limit, None if none is None else np.array(none, np.float32))
    assert spans[found.first, found.last] == pytest.approx(max(spans.values()), rel=1e-4)
    assert np.exp(found.log_probability) == pytest.approx(max(spans.values()), rel=1e-4)
    if none is None:
        assert found.no_answer_score is None
    else:
        # As in evaluate-v2.0.py's input: the null span's logits less the best span's.
        best = max(logits[i, 0] + logits[j, 1] for i, j in spans)
        assert found.no_answer_score == pytest.approx(sum(none) - best, abs=1e-4)


def test_an_answer_never_ends_before_it_begins_nor_runs_beyond_its_limit():
    logits = np.zeros((5, 2), np.float32)
    logits[4, 0] = logits[0, 1] = 5
    found = best_span(logits, 2)
    assert found.first <= found.last < found.first + 2


def test_the_window_that_is_surest_of_its_span_answers():
    sure, unsure = np.zeros((2, 4, 2), np.float32)
    sure[2] = 6
    unsure[1], unsure[0] = 8, 9  # louder, but likelier without an answer
    parts = [Encoded([0] * 4, read=(1, 4), no_answer=0)] * 2
    best, span = best_of_windows(parts, [RowOutput(unsure), RowOutput(sure)], 3)
    assert (best, span.first, span.last) == (1, 1, 1)
    assert span.no_answer_score == pytest.approx(-12)


def official_best_f1(scores, f1, has_answer):
    """evaluate-v2.0.py's find_best_thresh, which counts every question unanswered at first."""
    current = best = sum(not has for has in has_answer)
    for i in sorted(range(len(scores)), key=scores.__getitem__):
        current += f1[i] if has_answer[i] else -1
        best = max(best, current)
    return best


@seeded
@given(
    st.lists(
        st.tuples(st.floats(-9, 9), st.floats(0, 1), st.booleans()),
        min_size=1, max_size=20, unique_by=lambda row: row[0],
    )
)  # fmt: skip
def test_the_threshold_is_as_good_as_the_one_squads_script_finds(rows):
    scores, quality, has_answer = zip(*rows, strict=True)
    answered = [f1 * has for f1, has in zip(quality, has_answer, strict=True)]
    unanswered = [float(not has) for has in has_answer]
    threshold = tune_threshold(scores, answered, unanswered)
    reached = sum(
        a if score <= threshold else u
        for score, a, u in zip(scores, answered, unanswered, strict=True)
    )
    assert reached == pytest.approx(official_best_f1(scores, quality, has_answer))


def test_equal_scores_are_not_parted_and_zero_is_kept_where_it_is_as_good():
    assert tune_threshold([1.0, 1.0, 1.0], [1, 0, 0], [0, 1, 1]) == 0.0
    assert tune_threshold([-1.0, 3.0], [1, 0], [0, 1]) == 0.0
    assert tune_threshold([2.0, 4.0], [1, 0], [0, 1]) == 3.0
