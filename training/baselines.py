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
    """Return the answers of TF-IDF with logistic regression to classes, or ridge regression to scores; else none.

    None for several labels a text: there, no one linear model is the usual yardstick.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    rows = train if len(train) <= _MOST_ROWS else random.Random(0).sample(train, _MOST_ROWS)
    if not rows or not isinstance(rows[0].target, ClassificationTarget | RegressionTarget):
        return []
    if isinstance(rows[0].target, ClassificationTarget) and rows[0].target.labels is not None:
        return []
    is_class = isinstance(rows[0].target, ClassificationTarget)
    texts = [_text(example) for example in rows]
    answers = [_answer(example) for example in rows]
    if len(set(answers)) < 2:
        return []
    # Letters rather than words where words are not set apart by blanks, or there are none.
    how: dict[str, Any] = {"ngram_range": (1, 2)}
    if is_unspaced("".join(texts[:1000])) or not any(_WORD.search(text) for text in texts):
        how = {"analyzer": "char", "ngram_range": (1, 3)}
    model = LogisticRegression(max_iter=1000, C=10) if is_class else Ridge()
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, **how), model)
    name = "label" if is_class else "score"
    pipeline.fit(texts, answers)
    return [{name: answer} for answer in pipeline.predict([_text(e) for e in test]).tolist()]


def _answer(example: Example) -> str | float | None:
    target = example.target
    return target.score if isinstance(target, RegressionTarget) else getattr(target, "label", None)


def _text(example: Example) -> str:
    assert isinstance(example.request, TextRequest)
    return f"{example.request.text} {example.request.text_pair or ''}".strip()
