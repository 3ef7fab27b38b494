"""The tasks' metrics, each 0 to 1, by their standard implementations; imported where used, being slow to load."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence


def classification_metrics(predicted: Sequence[str], actual: Sequence[str]) -> dict[str, float]:
    """Return accuracy and macro-averaged F1 (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(actual, predicted)),
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
    }


def squad_metrics(
    predicted: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return exact match and token F1, the best over each question's references.

    As SQuAD's own evaluate-v2.0.py: lower case, no punctuation, no articles (Rajpurkar et al., arXiv 1606.05250).
    """
    pairs = list(zip(predicted, references, strict=True))
    return {
        "exact_match": _mean_of_best(pairs, lambda p, r: float(normalize(p) == normalize(r))),
        "f1": _mean_of_best(pairs, token_f1),
    }


def _mean_of_best(
    pairs: list[tuple[str, Sequence[str]]], metric: Callable[[str, str], float]
) -> float:
    return sum(max(metric(p, r) for r in refs) for p, refs in pairs) / max(1, len(pairs))


def token_f1(predicted: str, reference: str) -> float:
    """Return the F1 of the words that two answers share."""
    left, right = normalize(predicted).split(), normalize(reference).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def normalize(answer: str) -> str:
    """Return an answer as SQuAD compares it."""
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def rouge_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return mean ROUGE-1, -2 and -L F-measures with stemming (Google's rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r, p) for p, r in zip(predicted, references, strict=True)]
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    return {
        ours: sum(score[theirs].fmeasure for score in scores) / max(1, len(scores))
        for ours, theirs in names.items()
    }
