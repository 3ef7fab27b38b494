"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from adapters.errors import InvalidData
from adapters.tasks.base import (
    Encoded,
    HeadSpec,
    Labelled,
    RowOutput,
    Strict,
    Task,
    TaskParameters,
)
from adapters.tasks.metrics import classification_metrics
from adapters.tasks.templates import TemplateOptions, TextRequest, encode_text, sequence_head
from adapters.tokenizer import Tokenizer
from adapters.validation import listed


class ClassificationOptions(TemplateOptions):
    labels: list[str] = Field(min_length=2, description="Label names; their order is the head's.")

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) < len(labels):
            raise ValueError("a label stands in the list twice")
        return labels


class ClassificationTarget(Strict):
    label: str = Field(min_length=1)


class TextClassification(
    Task[ClassificationOptions, TextRequest, ClassificationTarget, TaskParameters]
):
    name: ClassVar[str] = "text-classification"
    primary_metric: ClassVar[str] = "accuracy"
    Options = ClassificationOptions
    Request = TextRequest
    Target = ClassificationTarget
    Parameters = TaskParameters

    @classmethod
    def options_from(
        cls, given: dict[str, Any], targets: Sequence[ClassificationTarget]
    ) -> dict[str, Any]:
        return {"labels": sorted({target.label for target in targets}), **given}

    def head(self, family: str) -> HeadSpec:
        return sequence_head(len(self.options.labels), family)

    def encode(
        self,
        tokenizer: Tokenizer,
        request: TextRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        return encode_text(tokenizer, self.options, request, parameters, max_tokens)

    def label(
        self, tokenizer: Tokenizer, encoded: Encoded, target: ClassificationTarget
    ) -> Labelled:
        if target.label not in self.options.labels:
            raise InvalidData(
                f"Label '{target.label}' is not one of {listed(self.options.labels)}.",
                param="label",
            )
        return Labelled(encoded.token_ids, [self.options.labels.index(target.label)])

    def postprocess(
        self,
        tokenizer: Tokenizer,
        request: TextRequest,
        encoded: Encoded,
        output: RowOutput,
    ) -> dict[str, Any]:
        assert output.logits is not None
        shifted = np.exp(output.logits - output.logits.max())
        scores = (shifted / shifted.sum()).tolist()
        best = int(np.argmax(scores))
        return {
            "label": self.options.labels[best],
            "score": scores[best],
            "scores": dict(zip(self.options.labels, scores, strict=True)),
        }

    def score(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[ClassificationTarget]
    ) -> dict[str, float]:
        return classification_metrics([p["label"] for p in predictions], [t.label for t in targets])

    def baselines(
        self,
        requests: Sequence[TextRequest],
        targets: Sequence[ClassificationTarget],
    ) -> dict[str, dict[str, float]]:
        labels = [target.label for target in targets]
        commonest = Counter(labels).most_common(1)[0][0]
        return {"majority": classification_metrics([commonest] * len(labels), labels)}
