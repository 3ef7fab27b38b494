"""The tasks' metrics, by their standard implementations; imported where used, being slow to load."""

from __future__ import annotations

import re
from collections.abc import Sequence


def classification_metrics(predicted: Sequence[str], actual: Sequence[str]) -> dict[str, float]:
    """Return accuracy and macro-averaged F1 (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(actual, predicted)),
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
    }


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
