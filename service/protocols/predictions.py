"""What ``POST /v1/predict`` answers, for the OpenAPI document: one model a task, as `adapters.tasks` makes them.

Answers are not read through these on their way out; a test holds them against those of all tasks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adapters.tasks.base import Strict
from service.errors import ErrorAnswer


class Usage(Strict):
    """Tokens that were read, and those that were made."""

    prompt_tokens: int
    completion_tokens: int


class _Prediction(Strict):
    adapter: str
    version: int
    truncated: bool = Field(description="whether some of the text was left out")
    usage: Usage


class Classification(_Prediction):
    """Of ``text-classification`` with one label a text."""

    label: str | None = Field(description="null if it abstained")
    score: float = Field(description="of the best label")
    scores: dict[str, float]
    abstained: bool = Field(False, description="there if the adapter may abstain")


class MultiLabelClassification(_Prediction):
    """Of ``text-classification`` with several labels a text."""

    labels: list[str]
    scores: dict[str, float]


class Regression(_Prediction):
    """Of ``regression``, in the data's unit."""

    score: float


class Entity(Strict):
    """A span of the text; ``start`` and ``end`` count code points."""

    label: str
    text: str
    start: int
    end: int
    score: float


class TokenClassification(_Prediction):
    """Of ``token-classification``."""

    entities: list[Entity]


class QuestionAnswering(_Prediction):
    """Of ``question-answering``: a slice of the context, in code points, or no answer."""

    answer: str
    start: int | None
    end: int | None
    score: float
    has_answer: bool
    no_answer_score: float | None = Field(
        description="null if it did not learn that there may be none"
    )


class TokenScore(Strict):
    token: str
    logprob: float


class ChosenToken(TokenScore):
    """A token of the answer, and the best ones in its place."""

    top: list[TokenScore]


class _Written(_Prediction):
    finish_reason: Literal["stop", "length"]
    logprobs: list[ChosenToken] | None = Field(None, description="there if they were asked for")


class Summarization(_Written):
    """Of ``summarization``."""

    summary: str


class Translation(_Written):
    """Of ``translation``."""

    translation: str


class TextGeneration(_Written):
    """Of ``text-generation``."""

    text: str


Prediction = (
    Classification
    | MultiLabelClassification
    | Regression
    | TokenClassification
    | QuestionAnswering
    | Summarization
    | Translation
    | TextGeneration
)


class PredictAnswer(Strict):
    """Predictions in the inputs' order; one that failed holds ``error``."""

    predictions: list[Prediction | ErrorAnswer]
