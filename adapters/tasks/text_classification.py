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
    Prompt,
    RowOutput,
    Strict,
    Task,
    TaskOptions,
    TaskParameters,
    fit_prompt,
)
from adapters.tasks.metrics import classification_metrics
from adapters.tokenizer import Tokenizer


class ClassificationOptions(TaskOptions):
    labels: list[str] = Field(min_length=2, description="Label names; their order is the head's.")
    template: str = Field("{text}", description="Prompt around the text; must hold {text} once.")

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) < len(labels):
            raise ValueError("a label stands in the list twice")
        return labels

    @field_validator("template")
    @classmethod
    def _holds_text(cls, template: str) -> str:
        if template.count("{text}") != 1:
            raise ValueError(f"'{template}' must hold {{text}} exactly once")
        return template


class ClassificationRequest(Strict):
    text: str = Field(min_length=1, pattern=r"\S")
    text_pair: str | None = Field(None, min_length=1)


class ClassificationTarget(Strict):
    label: str = Field(min_length=1)


class TextClassification(
    Task[ClassificationOptions, ClassificationRequest, ClassificationTarget, TaskParameters]
):
    name: ClassVar[str] = "text-classification"
    primary_metric: ClassVar[str] = "accuracy"
    Options = ClassificationOptions
    Request = ClassificationRequest
    Target = ClassificationTarget
    Parameters = TaskParameters

    @classmethod
    def options_from(
        cls, given: dict[str, Any], targets: Sequence[ClassificationTarget]
    ) -> dict[str, Any]:
        return {"labels": sorted({target.label for target in targets}), **given}

    def head(self, family: str) -> HeadSpec:
        # A causal backbone has read the whole text only at its last token.
        pooling = "last" if family == "decoder" else "mean"
        return HeadSpec(kind="sequence", outputs=len(self.options.labels), pooling=pooling)

    def encode(
        self,
        tokenizer: Tokenizer,
        request: ClassificationRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        before, after = self.options.template.split("{text}")
        pair = f"\n{request.text_pair}" if request.text_pair else ""

        def render(text: str) -> Prompt:
            return Prompt(f"{before}{text}{pair}{after}", len(before), len(before) + len(text))

        _, tokens, truncated = fit_prompt(
            tokenizer, render, request.text, max_tokens, truncate=parameters.truncate, param="text"
        )
        return Encoded(tokens.ids, truncated)

    def label(
        self, tokenizer: Tokenizer, encoded: Encoded, target: ClassificationTarget
    ) -> Labelled:
        if target.label not in self.options.labels:
            raise InvalidData(
                f"Label '{target.label}' is not one of {_listed(self.options.labels)}.",
                param="label",
            )
        return Labelled(encoded.token_ids, [self.options.labels.index(target.label)])

    def postprocess(
        self,
        tokenizer: Tokenizer,
        request: ClassificationRequest,
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
        requests: Sequence[ClassificationRequest],
        targets: Sequence[ClassificationTarget],
    ) -> dict[str, dict[str, float]]:
        labels = [target.label for target in targets]
        commonest = Counter(labels).most_common(1)[0][0]
        return {"majority": classification_metrics([commonest] * len(labels), labels)}


def _listed(labels: list[str], limit: int = 8) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:limit])
    return shown + (f" and {len(labels) - limit} more" if len(labels) > limit else "")
