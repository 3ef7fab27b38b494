"""Summaries: a short text in place of a long one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from adapters.tasks.base import Strict
from adapters.tasks.generation import MAX_NEW_TOKENS, InstructedTask, InstructionOptions
from adapters.tasks.metrics import rouge_metrics


class SummarizationOptions(InstructionOptions):
    instruction: str = Field(
        "Summarize the text in one sentence.",
        pattern=r"\S|^$",
        description="What the backbone is told; the text follows it. Empty: the text alone.",
    )
    max_new_tokens: int = Field(
        64, ge=1, le=MAX_NEW_TOKENS, description="Default length limit of a summary, in tokens."
    )


class SummarizationRequest(Strict):
    text: str = Field(min_length=1, pattern=r"\S")


class SummarizationTarget(Strict):
    summary: str = Field(min_length=1, pattern=r"\S")


class Summarization(
    InstructedTask[SummarizationOptions, SummarizationRequest, SummarizationTarget]
):
    name: ClassVar[str] = "summarization"
    primary_metric: ClassVar[str] = "rouge_l"
    answer_field: ClassVar[str] = "summary"
    Options = SummarizationOptions
    Request = SummarizationRequest
    Target = SummarizationTarget

    def source(self, request: SummarizationRequest) -> tuple[str, str]:
        return request.text, "text"

    def completion(self, target: SummarizationTarget) -> str:
        return target.summary

    def score(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[SummarizationTarget]
    ) -> dict[str, float]:
        return rouge_metrics([p["summary"] for p in predictions], [t.summary for t in targets])

    def baselines(
        self,
        requests: Sequence[SummarizationRequest],
        targets: Sequence[SummarizationTarget],
    ) -> dict[str, dict[str, float]]:
        leads = [first_sentence(request.text) for request in requests]
        return {"lead_1": rouge_metrics(leads, [target.summary for target in targets])}


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence (the lead-1 baseline of summarization)."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
