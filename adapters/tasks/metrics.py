"""The tasks' metrics, told from what each row adds to them, so that rows can be drawn again for an interval.

Shape letters: N rows, R resamples, C classes, K numbers that a row adds. Libraries are imported where used, being
slow to load.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.tasks.words import CJK, KANA, is_unspaced, split_characters

Array = np.ndarray[Any, np.dtype[np.float64]]
_ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Tally:
    """A task's answers to N rows, and its metrics as a function of how often each of them counts.

    Args:
        weigh: takes ``counts_RN`` and returns R values of each metric.
    """

    num_rows: int
    weigh: Callable[[Array], dict[str, Array]]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the rows as they are."""
        values = self.weigh(np.ones((1, self.num_rows)))
        return {name: float(value[0]) for name, value in values.items()}


def mean_tally(values: Mapping[str, Sequence[float]]) -> Tally:
    """Return the tally of metrics that are a mean of one number a row, over the rows where it is not NaN.

    Of rows that all are, the mean is NaN, too; of no rows it is 0.
    """
    stats_NK = np.array(list(values.values()), np.float64).T
    told_NK = ~np.isnan(stats_NK)

    def weigh(counts_RN: Array) -> dict[str, Array]:
        num_RK = counts_RN @ told_NK
        means_RK = _ratio(counts_RN @ np.nan_to_num(stats_NK), num_RK)
        if len(stats_NK):
            means_RK[num_RK == 0] = np.nan
        return dict(zip(values, means_RK.T, strict=True))

    return Tally(len(stats_NK), weigh)


def _ratio(above: Array, below: Array) -> Array:
    """Return a quotient, 0 where nothing stands below."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def classification_tally(predicted: Sequence[str | None], actual: Sequence[str]) -> Tally:
    """Return accuracy, macro-averaged F1 and Matthews' correlation; an answer of None is wrong, and of no class.

    F1 is averaged over the classes that stand among the rows, as scikit-learn does. The correlation is Gorodkin's
    for several classes (2004, doi 10.1016/j.compbiolchem.2004.09.006), 0 where all answers or all labels are one.
    """
    names = sorted({*actual, *(p for p in predicted if p is not None)})
    predicted_NC = _one_hot(predicted, [*names, None])
    actual_NC = _one_hot(actual, [*names, None])

    def weigh(counts_RN: Array) -> dict[str, Array]:
        n_R = counts_RN.sum(1)
        right_RC = counts_RN @ (predicted_NC * actual_NC)
        predicted_RC, actual_RC = counts_RN @ predicted_NC, counts_RN @ actual_NC
        right_R = right_RC.sum(1)
        return {
            "accuracy": _ratio(right_R, n_R),
            "macro_f1": _macro_f1(right_RC[:, :-1], predicted_RC[:, :-1], actual_RC[:, :-1]),
            "mcc": _matthews(n_R, right_R, predicted_RC, actual_RC),
        }

    return Tally(len(actual), weigh)


def _one_hot(labels: Sequence[str | None], names: Sequence[str | None]) -> Array:
    places = {name: i for i, name in enumerate(names)}
    hot_NC = np.zeros((len(labels), len(names)))
    hot_NC[np.arange(len(labels)), [places[label] for label in labels]] = 1
    return hot_NC


def _macro_f1(right_RC: Array, predicted_RC: Array, actual_RC: Array) -> Array:
    total_RC = predicted_RC + actual_RC
    return _ratio(_ratio(2 * right_RC, total_RC).sum(1), (total_RC > 0).sum(1))


def _matthews(n_R: Array, right_R: Array, predicted_RC: Array, actual_RC: Array) -> Array:
    both = n_R * right_R - (predicted_RC * actual_RC).sum(1)
    spread = (n_R**2 - (predicted_RC**2).sum(1)) * (n_R**2 - (actual_RC**2).sum(1))
    return _ratio(both, np.sqrt(spread))


def multi_label_tally(predicted_NC: Array, actual_NC: Array) -> Tally:
    """Return micro and macro F1 and the share of rows whose labels are all right, of 0 and 1 by row and label."""
    right_NC = predicted_NC * actual_NC
    exact_N = (predicted_NC == actual_NC).all(1).astype(np.float64)

    def weigh(counts_RN: Array) -> dict[str, Array]:
        right_RC = counts_RN @ right_NC
        predicted_RC, actual_RC = counts_RN @ predicted_NC, counts_RN @ actual_NC
        total_R = (predicted_RC + actual_RC).sum(1)
        # Of a label that no row has or gets, F1 is 0, as scikit-learn's is.
        per_label_RC = _ratio(2 * right_RC, predicted_RC + actual_RC)
        return {
            "micro_f1": _ratio(2 * right_RC.sum(1), total_R),
            "macro_f1": per_label_RC.mean(1),
            "accuracy": _ratio(counts_RN @ exact_N, counts_RN.sum(1)),
        }

    return Tally(len(actual_NC), weigh)


def calibration_tally(confidences: Sequence[float], is_right: Sequence[bool]) -> Tally:
    """Return the expected calibration error: how far confidence and accuracy are apart, over 15 equal bins.

    Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.
    """
    confidence_N = np.asarray(confidences, np.float64)
    # A bin takes its upper border, as the paper's do.
    bins_N = np.clip(np.ceil(confidence_N * _ECE_BINS).astype(int) - 1, 0, _ECE_BINS - 1)
    gap_NB = np.zeros((len(confidence_N), _ECE_BINS))
    gap_NB[np.arange(len(bins_N)), bins_N] = np.asarray(is_right, np.float64) - confidence_N

    def weigh(counts_RN: Array) -> dict[str, Array]:
        return {"ece": _ratio(np.abs(counts_RN @ gap_NB).sum(1), counts_RN.sum(1))}

    return Tally(len(confidence_N), weigh)


def joined(*tallies: Tally) -> Tally:
    """Return one tally with the metrics of several, all of the same rows."""

    def weigh(counts_RN: Array) -> dict[str, Array]:
        return {name: v for tally in tallies for name, v in tally.weigh(counts_RN).items()}

    return Tally(tallies[0].num_rows, weigh)


def rouge_tally(predicted: Sequence[str], references: Sequence[str]) -> Tally:
    """Return mean ROUGE-1, -2 and -L F-measures with stemming (Google's rouge-score).

    Text without other letters than ASCII's is read as Google reads it. Words of other alphabets stay whole, where
    Google's tokenizer drops them; of Chinese and Japanese each character is a word.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_RougeWords())
    scores = [scorer.score(r, p) for p, r in zip(predicted, references, strict=True)]
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    return mean_tally(
        {ours: [score[theirs].fmeasure for score in scores] for ours, theirs in names.items()}
    )


class _RougeWords:
    """Words as rouge-score compares them: in lower case, English ones of more than three letters by their stem."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # comes with rouge-score

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        return [
            self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word
            for word in _words(text.lower())
        ]


def _words(text: str) -> list[str]:
    """Return letters and digits that stand together, with their marks; each Chinese or Japanese character by itself."""
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    return split_characters(kept).split()


def completion_tally(predicted: Sequence[str], references: Sequence[str]) -> Tally:
    """Return ROUGE, and the share of answers that are the reference but for blanks at the edges."""
    same = [float(p.strip() == r.strip()) for p, r in zip(predicted, references, strict=True)]
    return joined(mean_tally({"exact_match": same}), rouge_tally(predicted, references))


def translation_tally(predicted: Sequence[str], references: Sequence[str]) -> Tally:
    """Return chrF and BLEU of the whole corpus (sacrebleu, divided by 100).

    BLEU counts words as WMT's 13a does, and single characters where the references are Chinese or of another script
    without blanks.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(predicted) != len(references):
        raise ValueError("one of predictions and references is shorter")
    tokenize = _bleu_tokenizer("".join(references))
    return joined(
        _corpus_tally("chrf", CHRF(), predicted, references),
        _corpus_tally("bleu", BLEU(tokenize=tokenize), predicted, references),
    )


def _corpus_tally(
    name: str, metric: Any, predicted: Sequence[str], references: Sequence[str]
) -> Tally:
    # Underscored, but what sacrebleu's own bootstrap is made of; it has no public way to a row's counts.
    stats_NK = np.array(metric._extract_corpus_statistics(predicted, [references]), np.float64)

    def weigh(counts_RN: Array) -> dict[str, Array]:
        sums_RK = (counts_RN @ stats_NK).astype(int).tolist()
        scores = [metric._compute_score_from_stats(sums).score for sums in sums_RK]
        return {name: np.array(scores) / 100}

    return Tally(len(stats_NK), weigh)


def _bleu_tokenizer(text: str) -> str:
    if not is_unspaced(text):
        return "13a"
    return "char" if re.search(f"[{KANA}]", text) or not re.search(f"[{CJK}]", text) else "zh"


def regression_tally(predicted: Sequence[float], actual: Sequence[float]) -> Tally:
    """Return Pearson's and Spearman's correlation, 0 where a side is constant, and the root mean squared error."""
    x_N, y_N = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    squares_N = (x_N - y_N) ** 2

    def weigh(counts_RN: Array) -> dict[str, Array]:
        x_RN, y_RN = (np.broadcast_to(_scaled(side), counts_RN.shape) for side in (x_N, y_N))
        return {
            "pearson": _correlation(counts_RN, x_RN, y_RN),
            "spearman": _correlation(counts_RN, _ranks(counts_RN, x_N), _ranks(counts_RN, y_N)),
            "rmse": np.sqrt(_ratio(counts_RN @ squares_N, counts_RN.sum(1))),
        }

    return Tally(len(y_N), weigh)


def _scaled(values_N: Array) -> Array:
    """Return values shifted and scaled to mean 0 and deviation 1, which no correlation sees; constants to 0."""
    shifted_N = values_N - values_N.mean()
    deviation = float(shifted_N.std())
    # Below that, differences are what fp64 rounds away.
    return shifted_N / deviation if deviation > 1e-14 * np.abs(values_N).max() else 0 * shifted_N


def _ranks(counts_RN: Array, values_N: Array) -> Array:
    """Return each row's rank in each resample as a share of its rows; equal values share their mean rank."""
    _, places_N, sizes_V = np.unique(values_N, return_inverse=True, return_counts=True)
    first_V = sizes_V.cumsum() - sizes_V
    num_RV = np.add.reduceat(counts_RN[:, np.argsort(values_N)], first_V, axis=1)
    mean_rank_RV = num_RV.cumsum(1) - num_RV / 2
    ranks_RN: Array = mean_rank_RV[:, places_N] / counts_RN.sum(1, keepdims=True)
    return ranks_RN


def _correlation(counts_RN: Array, x_RN: Array, y_RN: Array) -> Array:
    n_R1 = counts_RN.sum(1, keepdims=True)
    x_RN = x_RN - (counts_RN * x_RN).sum(1, keepdims=True) / n_R1
    y_RN = y_RN - (counts_RN * y_RN).sum(1, keepdims=True) / n_R1
    xx, yy = (counts_RN * x_RN**2).sum(1), (counts_RN * y_RN**2).sum(1)
    spread = np.sqrt(xx * yy)
    # A resample of one value many times has a spread of rounding errors only.
    return _ratio((counts_RN * x_RN * y_RN).sum(1), np.where(spread > 1e-20, spread, 0))


def span_tally(predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]) -> Tally:
    """Return precision, recall and F1 over all spans of BIO tags (read by seqeval, as conlleval counts)."""
    from seqeval.metrics.sequence_labeling import get_entities

    found = [set(get_entities(list(tags))) for tags in predicted]
    wanted = [set(get_entities(list(tags))) for tags in actual]
    stats_NK = np.array(
        [(len(f & w), len(f), len(w)) for f, w in zip(found, wanted, strict=True)], np.float64
    )

    def weigh(counts_RN: Array) -> dict[str, Array]:
        right, num_found, num_wanted = (counts_RN @ stats_NK).T
        return {
            "f1": _ratio(2 * right, num_found + num_wanted),
            "precision": _ratio(right, num_found),
            "recall": _ratio(right, num_wanted),
        }

    return Tally(len(stats_NK), weigh)
