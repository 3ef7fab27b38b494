"""The tasks' metrics, by their standard implementations; imported where used, being slow to load."""

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


def completion_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE, and the share of answers that are the reference but for blanks at the edges."""
    same = [p.strip() == r.strip() for p, r in zip(predicted, references, strict=True)]
    return {
        "exact_match": sum(same) / max(1, len(same)),
        **rouge_metrics(predicted, references),
    }


def translation_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return chrF and BLEU of the whole corpus (sacrebleu, divided by 100).

    BLEU counts words as WMT's 13a does, and single characters where the references are Chinese.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(predicted) != len(references):
        raise ValueError("one of predictions and references is shorter")
    tokenize = "zh" if _is_chinese("".join(references)) else "13a"
    return {
        "chrf": CHRF().corpus_score(predicted, [references]).score / 100,
        "bleu": BLEU(tokenize=tokenize).corpus_score(predicted, [references]).score / 100,
    }


def _is_chinese(text: str) -> bool:
    han = len(re.findall(r"[\u4e00-\u9fff]", text))
    return han > len(text) / 3


def regression_metrics(predicted: Sequence[float], actual: Sequence[float]) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation, 0 where a side is constant, and the root mean squared error."""
    import numpy as np
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import root_mean_squared_error

    varies = len(set(predicted)) > 1 and len(set(actual)) > 1
    return {
        # Sides that differ by less than fp64 can tell give NaN.
        "pearson": float(np.nan_to_num(pearsonr(predicted, actual).statistic)) if varies else 0.0,
        "spearman": float(np.nan_to_num(spearmanr(predicted, actual).statistic)) if varies else 0.0,
        "rmse": float(root_mean_squared_error(actual, predicted)),
    }


def span_metrics(
    predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return precision, recall and F1 over all spans of BIO tags (seqeval, as conlleval counts)."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    pair = [list(tags) for tags in actual], [list(tags) for tags in predicted]
    return {
        "f1": float(f1_score(*pair, zero_division=0)),
        "precision": float(precision_score(*pair, zero_division=0)),
        "recall": float(recall_score(*pair, zero_division=0)),
    }
