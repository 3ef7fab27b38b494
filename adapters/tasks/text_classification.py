"""A label for a text or a pair of texts, or several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from adapters.errors import InvalidData
from adapters.tasks.base import (
    Encoded,
    HeadSpec,
    Labelled,
    Observation,
    RowOutput,
    Strict,
    Task,
    TaskParameters,
)
from adapters.tasks.calibration import best_f1_threshold, fit_temperature, sigmoid, softmax
from adapters.tasks.metrics import (
    Array,
    Tally,
    calibration_tally,
    classification_tally,
    joined,
    mean_tally,
    multi_label_tally,
)
from adapters.tasks.templates import TemplateOptions, TextRequest, encode_text, sequence_head
from adapters.tokenizer import Tokenizer
from adapters.validation import listed


class ClassificationOptions(TemplateOptions):
    labels: list[str] = Field(min_length=2, description="Label names; their order is the head's.")
    multi_label: bool = Field(False, description="A text may have several labels, or none.")
    temperature: float = Field(
        1.0, gt=0, description="Logits are divided by it, so that scores mean what they say."
    )
    thresholds: dict[str, float] = Field(
        default_factory=dict,
        description="Score from which a label is given; 0.5 of several labels, else 0.",
    )
    abstain_below: float = Field(
        0.0, ge=0, le=1, description="Score below which one label is not given at all."
    )

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) < len(labels):
            raise ValueError("a label stands in the list twice")
        return labels

    @model_validator(mode="after")
    def _know_labels(self) -> ClassificationOptions:
        unknown = sorted(set(self.thresholds) - set(self.labels))
        if unknown:
            raise ValueError(f"thresholds name '{unknown[0]}', which is not one of the labels")
        if self.multi_label and self.abstain_below:
            raise ValueError(
                "abstain_below is for one label; of several, thresholds may leave all out"
            )
        return self


class ClassificationTarget(Strict):
    """The right label or, of a text that may have several or none, the right ``labels``."""

    label: str | None = Field(None, min_length=1)
    labels: list[str] | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ClassificationTarget:
        if self.label is None and self.labels is None:
            raise ValueError("no field 'label' or 'labels'")
        if self.label is not None and self.labels is not None:
            raise ValueError("both 'label' and 'labels'; give one of them")
        return self

    def names(self) -> list[str]:
        """Return the label or labels."""
        return [self.label] if self.label is not None else list(self.labels or ())


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
        labels = sorted({name for target in targets for name in target.names()})
        found: dict[str, Any] = {"labels": labels}
        if any(target.labels is not None for target in targets):
            found["multi_label"] = True
        return {**found, **given}

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
        unknown = [name for name in target.names() if name not in self.options.labels]
        if unknown:
            raise InvalidData(
                f"Label '{unknown[0]}' is not one of {listed(self.options.labels)}.", param="label"
            )
        if self.options.multi_label:
            return Labelled(encoded.token_ids, self._marks(target.names()), loss="labels")
        if target.label is None:
            raise InvalidData(
                "'labels' is a list, but this adapter gives one label. Set the option multi_label.",
                param="labels",
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
        logits_C = output.logits.astype(np.float64) / self.options.temperature
        if self.options.multi_label:
            scores = dict(zip(self.options.labels, sigmoid(logits_C).tolist(), strict=True))
            limits = self.options.thresholds
            chosen = [name for name, score in scores.items() if score >= limits.get(name, 0.5)]
            return {"labels": chosen, "scores": scores}
        scores = dict(zip(self.options.labels, softmax(logits_C).tolist(), strict=True))
        best = max(scores, key=lambda name: scores[name])
        answer = {"label": best, "score": scores[best], "scores": scores}
        return self._abstaining(answer) if self._may_abstain() else answer

    def _may_abstain(self) -> bool:
        return bool(self.options.abstain_below or self.options.thresholds)

    def _abstaining(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that gives no label if its score is too low."""
        limit = max(self.options.abstain_below, self.options.thresholds.get(answer["label"], 0.0))
        is_unsure = answer["score"] < limit
        return {**answer, "label": None if is_unsure else answer["label"], "abstained": is_unsure}

    def calibrated(self, tokenizer: Tokenizer, observed: Sequence[Observation]) -> dict[str, Any]:
        """Return the options with the best temperature for ``observed`` or, of several labels, each one's threshold."""
        options = self.options.model_dump()
        logits_NC = np.array([each.outputs[0].logits for each in observed], np.float64)
        if self.options.multi_label:
            actual_NC = self._matrix([each.target.names() for each in observed]) > 0
            scores_NC = sigmoid(logits_NC / self.options.temperature)
            found = {
                name: best_f1_threshold(scores_NC[:, c], actual_NC[:, c])
                for c, name in enumerate(self.options.labels)
            }
            given = {name: value for name, value in found.items() if value is not None}
            return {**options, "thresholds": {**self.options.thresholds, **given}}
        labels_N = np.array([self.options.labels.index(each.target.label) for each in observed])
        temperature = fit_temperature(logits_NC, labels_N)
        return options if temperature is None else {**options, "temperature": temperature}

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[ClassificationTarget]
    ) -> Tally:
        if self.options.multi_label:
            predicted_NC = self._matrix([p["labels"] for p in predictions])
            return multi_label_tally(predicted_NC, self._matrix([t.names() for t in targets]))
        labels = [str(target.label) for target in targets]
        answers = [p["label"] for p in predictions]
        tallies = [classification_tally(answers, labels)]
        if all("scores" in p for p in predictions):
            # Of the label that the score is of, given or not.
            likeliest = [max(p["scores"], key=lambda name: p["scores"][name]) for p in predictions]
            right = [name == label for name, label in zip(likeliest, labels, strict=True)]
            tallies.append(calibration_tally([p["score"] for p in predictions], right))
        if self._may_abstain():
            tallies.append(mean_tally({"coverage": [float(a is not None) for a in answers]}))
        return joined(*tallies)

    def _matrix(self, names: Sequence[Sequence[str]]) -> Array:
        """Return labels as 0 and 1 by row and label; those that the adapter does not know are left out."""
        return np.array([self._marks(each) for each in names]).reshape(-1, len(self.options.labels))

    def _marks(self, names: Sequence[str]) -> list[float]:
        return [float(label in names) for label in self.options.labels]

    def baselines(
        self,
        requests: Sequence[TextRequest],
        targets: Sequence[ClassificationTarget],
    ) -> dict[str, dict[str, float]]:
        commonest = Counter(tuple(target.names()) for target in targets).most_common(1)[0][0]
        answer = {"labels": commonest} if self.options.multi_label else {"label": commonest[0]}
        return {"majority": self.score([answer] * len(targets), targets)}
