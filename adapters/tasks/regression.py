"""One number for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from adapters.tasks.base import (
    Encoded,
    HeadSpec,
    Labelled,
    RowOutput,
    Strict,
    Task,
    TaskParameters,
)
from adapters.tasks.metrics import Tally, regression_tally
from adapters.tasks.templates import TemplateOptions, TextRequest, encode_text, sequence_head
from adapters.tokenizer import Tokenizer

# Far beyond any score, and far from where squares of fp32 numbers overflow.
LARGEST_SCORE = 1e12


class RegressionOptions(TemplateOptions):
    mean: float = Field(
        0.0, allow_inf_nan=False, description="What the head's 0 stands for; the data's mean."
    )
    std: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="What the head's 1 is beyond that; the data's standard deviation.",
    )


def _no_truth_value(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("a score is a number, not a truth value")
    return given


class RegressionTarget(Strict):
    score: Annotated[float, BeforeValidator(_no_truth_value)] = Field(
        ge=-LARGEST_SCORE, le=LARGEST_SCORE, allow_inf_nan=False
    )


class Regression(Task[RegressionOptions, TextRequest, RegressionTarget, TaskParameters]):
    """The head learns scores scaled to mean 0 and deviation 1, so that one learning rate suits every unit."""

    name: ClassVar[str] = "regression"
    primary_metric: ClassVar[str] = "pearson"
    Options = RegressionOptions
    Request = TextRequest
    Target = RegressionTarget
    Parameters = TaskParameters

    @classmethod
    def options_from(
        cls, given: dict[str, Any], targets: Sequence[RegressionTarget]
    ) -> dict[str, Any]:
        scores = [target.score for target in targets]
        return {"mean": fmean(scores), "std": pstdev(scores) or 1.0, **given}

    def head(self, family: str) -> HeadSpec:
        return sequence_head(1, family)

    def encode(
        self,
        tokenizer: Tokenizer,
        request: TextRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        return encode_text(tokenizer, self.options, request, parameters, max_tokens)

    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: RegressionTarget) -> Labelled:
        scaled = (target.score - self.options.mean) / self.options.std
        return Labelled(encoded.token_ids, [scaled], loss="value")

    def postprocess(
        self, tokenizer: Tokenizer, request: TextRequest, encoded: Encoded, output: RowOutput
    ) -> dict[str, Any]:
        assert output.logits is not None
        return {"score": float(output.logits[0]) * self.options.std + self.options.mean}

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[RegressionTarget]
    ) -> Tally:
        return regression_tally([p["score"] for p in predictions], [t.score for t in targets])

    def baselines(
        self, requests: Sequence[TextRequest], targets: Sequence[RegressionTarget]
    ) -> dict[str, dict[str, float]]:
        scores = [target.score for target in targets]
        return {"mean": regression_tally([self.options.mean] * len(scores), scores).metrics()}
