"""How answers to questions are compared with the right ones: exact match and F1, with and without an answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from math import nan

from adapters.tasks.metrics import Tally, mean_tally
from adapters.tasks.words import has_characters_for_words, split_characters


def squad_tally(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Return exact match and token F1, the best over each question's references; of all, and by kind of question.

    As SQuAD's own evaluate-v2.0.py (Rajpurkar et al., arXiv 1806.03822): a question without references is answered
    rightly by an empty answer. The means by kind are there if some question has no answer.
    """
    exact = [best_exact_match(p, refs) for p, refs in zip(predicted, references, strict=True)]
    f1 = [best_f1(p, refs) for p, refs in zip(predicted, references, strict=True)]
    values = {"exact_match": exact, "f1": f1}
    kinds = {"has_answer": [bool(refs) for refs in references]}
    kinds["no_answer"] = [not has for has in kinds["has_answer"]]
    for name, is_kind in kinds.items():
        if any(kinds["no_answer"]) and any(is_kind):
            values[f"{name}_exact_match"] = _only(exact, is_kind)
            values[f"{name}_f1"] = _only(f1, is_kind)
    return mean_tally(values)


def best_exact_match(predicted: str, references: Sequence[str]) -> float:
    """Return 1 if an answer is one of the references, but for what `normalize` takes away; else 0."""
    return max(float(normalize(predicted) == normalize(r)) for r in _usable(references))


def best_f1(predicted: str, references: Sequence[str]) -> float:
    """Return the best `token_f1` over the references."""
    return max(token_f1(predicted, reference) for reference in _usable(references))


def token_f1(predicted: str, reference: str) -> float:
    """Return the F1 of the words that two answers share."""
    left, right = normalize(predicted).split(), normalize(reference).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def normalize(answer: str) -> str:
    """Return an answer as SQuAD compares it: lower case, without punctuation and articles, blanks between words.

    Chinese and Japanese set no blanks: as in CMRC 2018's script (Cui et al., arXiv 1810.07366), each character is a
    word, and punctuation of every script goes.
    """
    lower = answer.lower()
    if has_characters_for_words(lower):
        kept = "".join(c for c in lower if not unicodedata.category(c).startswith("P"))
        kept = split_characters("".join(c for c in kept if c not in string.punctuation))
    else:
        kept = "".join(c for c in lower if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _usable(references: Sequence[str]) -> Sequence[str]:
    """Return the references with something to compare; an empty one where there are none."""
    return [reference for reference in references if normalize(reference)] or [""]


def _only(values: Sequence[float], is_kind: Sequence[bool]) -> list[float]:
    """Return the values of one kind of row, NaN for the others."""
    return [value if is_one else nan for value, is_one in zip(values, is_kind, strict=True)]
