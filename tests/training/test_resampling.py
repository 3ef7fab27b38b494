"""Bootstrap intervals: those of scipy on a mean, and fast on many rows."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from adapters.tasks.answer_metrics import squad_tally
from adapters.tasks.catalog import get_task, task_class
from adapters.tasks.metrics import (
    Tally,
    classification_tally,
    mean_tally,
    regression_tally,
    span_tally,
)
from training.baselines import baselines
from training.data import Example
from training.resampling import intervals, row_scores


def test_an_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(1).normal(size=200)
    (low, high) = intervals(mean_tally({"x": values.tolist()}))["x"]
    theirs = bootstrap((values,), np.mean, method="percentile", rng=2).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert low < values.mean() < high


def test_an_interval_of_few_rows_of_a_kind_is_of_resamples_that_have_one():
    """A twentieth of the resamples has none of three rows among a hundred."""
    tally = squad_tally(["Ada"] * 97 + [""] * 3, [["Ada"]] * 97 + [[]] * 3)
    assert intervals(tally)["no_answer_f1"] == (1, 1)


def test_intervals_are_seeded_hold_the_metric_and_narrow_with_rows():
    def of(num):
        return classification_tally(["a", "b", "b", "a"] * num, ["a", "b", "a", "a"] * num)

    assert intervals(of(20)) == intervals(of(20))
    widths = []
    for num in (20, 500):
        found = intervals(of(num))
        metrics = of(num).metrics()
        assert all(low <= metrics[name] <= high for name, (low, high) in found.items())
        widths.append(found["accuracy"][1] - found["accuracy"][0])
    assert widths[1] < widths[0] / 3
    assert intervals(classification_tally([], [])) == {}


@pytest.mark.parametrize(
    ("tally", "metric", "expected"),
    [
        (classification_tally(["a", None, "b"], ["a", "b", "b"]), "accuracy", [1, 0, 1]),
        (span_tally([["B-x"], ["O"]], [["B-x"], ["B-x"]]), "f1", [1, 0]),
        (mean_tally({"rouge_l": [0.25, 0.5]}), "rouge_l", [0.25, 0.5]),
        (mean_tally({"f1": []}), "f1", []),
    ],
)
def test_a_row_alone_has_the_metric_that_it_adds(tally: Tally, metric, expected):
    assert row_scores(tally, metric) == expected


def test_many_rows_are_scored_and_ranked_in_memory_that_grows_with_their_number():
    x = np.random.default_rng(0).normal(size=20_000).tolist()
    tracemalloc.start()
    try:
        assert regression_tally(x, x).metrics()["spearman"] == pytest.approx(1)
        assert row_scores(mean_tally({"f1": x}), "f1") == pytest.approx(x)
        assert tracemalloc.get_traced_memory()[1] < 64e6  # squared, 3.2e9
    finally:
        tracemalloc.stop()


def test_the_text_baseline_is_scikit_learns_on_the_same_rows():
    cls = task_class("text-classification")
    words = [("good fine", "+"), ("bad awful", "-")]
    rows = [
        Example(cls.Request(text=f"{words[i % 2][0]} {i}"), cls.Target(label=words[i % 2][1]), i)
        for i in range(30)
    ]
    task = get_task("text-classification", {"labels": ["+", "-"]})
    found = baselines(task, rows[:20], rows[20:])
    assert set(found) == {"majority", "tfidf"}
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    model = LogisticRegression(max_iter=1000, C=10)
    model.fit(
        vectors.fit_transform([e.request.text for e in rows[:20]]),
        [e.target.label for e in rows[:20]],
    )
    expected = model.predict(vectors.transform([e.request.text for e in rows[20:]]))
    right = np.mean(expected == [e.target.label for e in rows[20:]])
    assert found["tfidf"]["accuracy"] == pytest.approx(right)
    assert set(baselines(task, [], rows)) == {"majority"}


def test_a_score_and_a_text_without_blanks_have_a_baseline_too():
    cls = task_class("regression")
    rows = [
        Example(cls.Request(text="好" * (1 + i % 5) + "坏"), cls.Target(score=float(i % 5)), i)
        for i in range(30)
    ]
    task = get_task("regression", {"mean": 2.0, "std": 1.0})
    assert baselines(task, rows[:20], rows[20:])["tfidf"]["pearson"] > 0.9


@pytest.mark.parametrize("texts", [["😀", "😢"], ["a", "b"]])
def test_texts_without_words_have_a_baseline_by_characters(texts):
    cls = task_class("text-classification")
    rows = [
        Example(cls.Request(text=texts[i % 2]), cls.Target(label="+-"[i % 2]), i) for i in range(20)
    ]
    task = get_task("text-classification", {"labels": ["+", "-"]})
    assert baselines(task, rows, rows)["tfidf"]["accuracy"] == 1


def test_a_file_sorted_by_label_is_drawn_from_as_a_whole(monkeypatch):
    monkeypatch.setattr("training.baselines._MOST_ROWS", 20)
    cls = task_class("text-classification")
    rows = [
        Example(cls.Request(text=f"word{i}"), cls.Target(label="+" if i < 50 else "-"), i)
        for i in range(100)
    ]
    task = get_task("text-classification", {"labels": ["+", "-"]})
    assert "tfidf" in baselines(task, rows, rows)
    assert "tfidf" not in baselines(task, rows[:50], rows[:50])


def test_several_labels_a_text_have_a_baseline_of_one_model_each():
    cls = task_class("text-classification")
    words = {"a": "alpha one", "b": "beta two"}
    sets = [[], ["a"], ["b"], ["a", "b"]]
    rows = [
        Example(
            cls.Request(text=f"text {' '.join(words[n] for n in sets[i % 4])}"),
            cls.Target(labels=sets[i % 4]),
            i,
        )
        for i in range(40)
    ]
    task = get_task("text-classification", {"labels": ["a", "b"], "multi_label": True})
    found = baselines(task, rows[:28], rows[28:])
    assert found["tfidf"][task.primary_metric] > 0.95
