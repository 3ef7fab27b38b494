"""Weights of training rows, so that rare classes count as much as common ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from adapters.errors import InvalidRequest
from adapters.tasks.text_classification import ClassificationTarget
from training.data import Example


def balanced(examples: Sequence[Example]) -> list[Example]:
    """Return the examples weighted by ``rows / (classes * rows of the class)``, as scikit-learn's ``balanced``.

    The weights' mean is 1, so that the loss keeps its size.

    Raises:
        InvalidRequest: the task has no classes.
    """
    labels = [_class(example) for example in examples]
    counts = Counter(labels)
    return [
        replace(example, weight=len(labels) / (len(counts) * counts[label]))
        for example, label in zip(examples, labels, strict=True)
    ]


def _class(example: Example) -> str:
    if not isinstance(example.target, ClassificationTarget) or example.target.label is None:
        raise InvalidRequest(
            "data.class_weights is 'balanced', but only text-classification with one label has one class a row. "
            "Leave it unset.",
            param="data.class_weights",
        )
    return example.target.label
