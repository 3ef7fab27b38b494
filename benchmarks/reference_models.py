"""What needs no backbone: TF-IDF with logistic or ridge regression (scikit-learn), fitted on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline

from benchmarks.fits import FitWork


def text_baseline(task: str, work: FitWork) -> float | None:
    """Return accuracy or Pearson's r on the test rows; None for a task that such a model can't do."""
    if task not in ("text-classification", "regression"):
        return None
    texts, test = (
        [_text(e.request) for e in work.learned],
        [_text(e.request) for e in work.examples],
    )
    model = LogisticRegression(max_iter=2000, C=10) if task == "text-classification" else Ridge()
    # Letters rather than words where words are not set apart by spaces.
    is_spaced = np.mean([" " in text for text in texts]) > 0.5
    how: dict[str, Any] = {"ngram_range": (1, 2)} if is_spaced else {"analyzer": "char"}
    fitted = make_pipeline(TfidfVectorizer(sublinear_tf=True, **how), model)
    fitted.fit(texts, _answers(work.learned))
    found, right = fitted.predict(test), _answers(work.examples)
    if task == "text-classification":
        return float(accuracy_score(right, found))
    return float(pearsonr(right, found).statistic)


def _text(request: Any) -> str:
    return f"{request.text} {request.text_pair or ''}".strip()


def _answers(examples: Sequence[Any]) -> list[Any]:
    return [getattr(e.target, "label", None) or getattr(e.target, "score", 0.0) for e in examples]
