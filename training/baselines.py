"""What an adapter must beat: answers that take no model, and TF-IDF with a linear model on the same rows."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from adapters.tasks.catalog import AnyTask
from adapters.tasks.regression import RegressionTarget
from adapters.tasks.templates import TextRequest
from adapters.tasks.text_classification import ClassificationTarget
from adapters.tasks.words import is_unspaced
from training.data import Example

_MOST_ROWS = 20_000  # more take minutes, and change little
_WORD = re.compile(r"\w\w")  # of which TF-IDF takes notice


def baselines(
    task: AnyTask, train: Sequence[Example], test: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """Return the metrics of each baseline on the test rows, by its name; without ``train``, of those that need none."""
    requests, targets = [e.request for e in test], [e.target for e in test]
    found = task.baselines(requests, targets)
    predictions = _text_predictions(train, test)
    return found | ({"tfidf": task.score(predictions, targets)} if predictions else {})


def _text_predictions(train: Sequence[Example], test: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the answers of TF-IDF with a linear model to classes, sets of labels or scores; else none."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    rows = train if len(train) <= _MOST_ROWS else random.Random(0).sample(train, _MOST_ROWS)
    if not rows or not isinstance(rows[0].target, ClassificationTarget | RegressionTarget):
        return []
    answers = [_answer(example) for example in rows]
    if len(set(answers)) < 2:
        return []
    texts = [_text(example) for example in rows]
    # Letters rather than words where words are not set apart by blanks, or there are none.
    how: dict[str, Any] = {"ngram_range": (1, 2)}
    if is_unspaced("".join(texts[:1000])) or not any(_WORD.search(text) for text in texts):
        how = {"analyzer": "char", "ngram_range": (1, 3)}
    model = _Linear(rows[0].target)
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, **how), model.estimator)
    pipeline.fit(texts, model.learnable(answers))
    return model.predictions(pipeline.predict([_text(e) for e in test]))


class _Linear:
    """The linear model for a kind of answer: logistic regression, one for each of several labels, or ridge."""

    def __init__(self, target: ClassificationTarget | RegressionTarget) -> None:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.preprocessing import MultiLabelBinarizer

        self._marks = None
        self._field = "label"
        self.estimator: Any = LogisticRegression(max_iter=1000, C=10)
        if isinstance(target, RegressionTarget):
            self._field, self.estimator = "score", Ridge()
        elif target.labels is not None:
            self._field, self._marks = "labels", MultiLabelBinarizer()
            self.estimator = OneVsRestClassifier(self.estimator)

    def learnable(self, answers: Sequence[Any]) -> Any:
        """Return answers as the model is fitted to them."""
        return answers if self._marks is None else self._marks.fit_transform(answers)

    def predictions(self, found: Any) -> list[dict[str, Any]]:
        """Return what the model found, as the task's own predictions."""
        told = found.tolist() if self._marks is None else self._marks.inverse_transform(found)
        return [{self._field: list(x) if self._marks else x} for x in told]


def _answer(example: Example) -> str | float | tuple[str, ...]:
    target = example.target
    if isinstance(target, RegressionTarget):
        return target.score
    assert isinstance(target, ClassificationTarget)
    return tuple(target.labels) if target.labels is not None else str(target.label)


def _text(example: Example) -> str:
    assert isinstance(example.request, TextRequest)
    return f"{example.request.text} {example.request.text_pair or ''}".strip()
