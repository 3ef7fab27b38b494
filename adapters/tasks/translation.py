"""Translations: the same text in another language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from adapters.tasks.base import Strict
from adapters.tasks.generation import MAX_NEW_TOKENS, InstructedTask, InstructionOptions
from adapters.tasks.metrics import Tally, translation_tally


class TranslationOptions(InstructionOptions):
    instruction: str = Field(
        "Translate the text.",
        pattern=r"\S|^$",
        description="What the backbone is told; name the language here. Empty: the text alone.",
    )
    max_new_tokens: int = Field(
        128, ge=1, le=MAX_NEW_TOKENS, description="Default length limit of a translation."
    )


class TranslationRequest(Strict):
    source: str = Field(min_length=1, pattern=r"\S")


class TranslationTarget(Strict):
    target: str = Field(min_length=1, pattern=r"\S")


class Translation(InstructedTask[TranslationOptions, TranslationRequest, TranslationTarget]):
    name: ClassVar[str] = "translation"
    primary_metric: ClassVar[str] = "chrf"
    answer_field: ClassVar[str] = "translation"
    Options = TranslationOptions
    Request = TranslationRequest
    Target = TranslationTarget

    def source(self, request: TranslationRequest) -> tuple[str, str]:
        return request.source, "source"

    def completion(self, target: TranslationTarget) -> str:
        return target.target

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[TranslationTarget]
    ) -> Tally:
        return translation_tally(
            [p["translation"] for p in predictions], [t.target for t in targets]
        )

    def baselines(
        self, requests: Sequence[TranslationRequest], targets: Sequence[TranslationTarget]
    ) -> dict[str, dict[str, float]]:
        sources = [request.source for request in requests]
        return {
            "source": translation_tally(sources, [target.target for target in targets]).metrics()
        }
