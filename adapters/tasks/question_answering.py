"""Extractive question answering: the answer is a slice of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from adapters.errors import InvalidData, InvalidRequest
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
from adapters.tasks.metrics import squad_metrics
from adapters.tokenizer import Tokenizer


class AnsweringOptions(TaskOptions):
    max_answer_tokens: int = Field(30, ge=1, description="Longest answer, in tokens.")


class AnsweringRequest(Strict):
    question: str = Field(min_length=1, pattern=r"\S")
    context: str = Field(min_length=1, pattern=r"\S")


class Answer(Strict):
    text: str = Field(min_length=1)
    answer_start: int = Field(ge=0, description="Where it begins in the context, in code points.")


class AnsweringTarget(Strict):
    answers: list[Answer] = Field(min_length=1)


class QuestionAnswering(Task[AnsweringOptions, AnsweringRequest, AnsweringTarget, TaskParameters]):
    name: ClassVar[str] = "question-answering"
    primary_metric: ClassVar[str] = "f1"
    Options = AnsweringOptions
    Request = AnsweringRequest
    Target = AnsweringTarget
    Parameters = TaskParameters

    def head(self, family: str) -> HeadSpec:
        return HeadSpec(kind="token", outputs=2)

    def encode(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        # The question goes first: a causal backbone must know it while it reads the context.
        before = f"Question: {request.question}\nContext: "

        def render(context: str) -> Prompt:
            return Prompt(before + context, len(before), len(before) + len(context))

        prompt, tokens, truncated = fit_prompt(
            tokenizer,
            render,
            request.context,
            max_tokens,
            truncate=parameters.truncate,
            param="context",
        )
        first, end = tokens.between(prompt.start, prompt.stop)
        if first == end:
            raise InvalidRequest(
                "The tokenizer finds nothing to read in 'context'. Send one with words.",
                param="context",
            )
        # A token may begin before the context (its leading space); clip it to the context.
        offsets = [
            (max(start - prompt.start, 0), min(stop, prompt.stop) - prompt.start)
            for start, stop in tokens.offsets[first:end]
        ]
        return Encoded(tokens.ids, truncated, (first, end), offsets)

    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: AnsweringTarget) -> Labelled:
        answer = target.answers[0]
        begin, end = answer.answer_start, answer.answer_start + len(answer.text)
        inside = [i for i, (s, e) in enumerate(encoded.offsets) if s < end and e > begin]
        if not inside or (encoded.offsets[-1][1] < end):
            raise InvalidData(
                f"The answer '{answer.text}' at {begin} lies beyond the context's end.",
                param="answers",
            )
        first = encoded.read[0]
        return Labelled(encoded.token_ids, [first + inside[0], first + inside[-1]], encoded.read)

    def postprocess(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        encoded: Encoded,
        output: RowOutput,
    ) -> dict[str, Any]:
        assert output.logits is not None
        begin, end, score = best_span(
            output.logits[slice(*encoded.read)], self.options.max_answer_tokens
        )
        start, stop = encoded.offsets[begin][0], encoded.offsets[end][1]
        text = request.context[start:stop]
        start += len(text) - len(text.lstrip())
        answer = text.strip()
        if not answer:
            return {"answer": "", "start": None, "end": None, "score": score}
        return {"answer": answer, "start": start, "end": start + len(answer), "score": score}

    def score(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[AnsweringTarget]
    ) -> dict[str, float]:
        references = [[answer.text for answer in target.answers] for target in targets]
        return squad_metrics([p["answer"] for p in predictions], references)


def best_span(
    logits_N2: np.ndarray[Any, np.dtype[np.float32]], max_tokens: int
) -> tuple[int, int, float]:
    """Return first token, last token and probability of the best span of at most ``max_tokens``.

    The probability is that of the span's start times that of its end, as in the BERT paper
    (Devlin et al., arXiv 1810.04805, section 4.2), over the tokens given.
    """
    log_start, log_end = (_log_softmax(logits_N2[:, i]) for i in (0, 1))
    best, best_score = (0, 0), -np.inf
    for begin in range(len(log_start)):
        ends = log_end[begin : begin + max_tokens]
        end = int(np.argmax(ends))
        score = float(log_start[begin] + ends[end])
        if score > best_score:
            best, best_score = (begin, begin + end), score
    return (*best, float(np.exp(best_score)))


def _log_softmax(
    logits_N: np.ndarray[Any, np.dtype[np.float32]],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    shifted = logits_N - logits_N.max()
    return shifted - np.log(np.exp(shifted).sum())
