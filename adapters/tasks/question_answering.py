"""Extractive question answering: the answer is a slice of the context, or there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.answer_metrics import best_f1, squad_tally
from adapters.tasks.answer_spans import AnswerSpan, best_of_windows, tune_threshold
from adapters.tasks.base import (
    Encoded,
    HeadSpec,
    Labelled,
    Observation,
    Prompt,
    RowOutput,
    Strict,
    Task,
    TaskOptions,
    TaskParameters,
    encode_prompt,
    fit_prompt,
)
from adapters.tasks.metrics import Tally
from adapters.tasks.windows import Window, fit_windows, readable
from adapters.tokenizer import Tokenizer, Tokens


class AnsweringOptions(TaskOptions):
    max_answer_tokens: int = Field(30, ge=1, description="Longest answer, in tokens.")
    stride: int = Field(
        128,
        ge=0,
        description="Tokens that neighbouring windows of a long context share, half a window at most.",
    )
    unanswerable: bool = Field(
        False,
        description="Whether a question may have no answer; if not given, as in the training data.",
    )
    no_answer_threshold: float = Field(
        0.0,
        allow_inf_nan=False,
        description="No answer is given if its no_answer_score is above this; set by the validation rows, if any.",
    )


class AnsweringRequest(Strict):
    question: str = Field(min_length=1, pattern=r"\S")
    context: str = Field(min_length=1, pattern=r"\S")


class Answer(Strict):
    text: str = Field(min_length=1)
    answer_start: int = Field(ge=0, description="Where it begins in the context, in code points.")

    def place(self) -> tuple[int, int]:
        """Return where it stands, [start, end), without blanks around it: they may be of its neighbours' tokens."""
        start = self.answer_start + len(self.text) - len(self.text.lstrip())
        return start, start + len(self.text.strip())


class AnsweringTarget(Strict):
    answers: list[Answer] = Field(description="Empty if the context holds no answer.")

    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


class QuestionAnswering(Task[AnsweringOptions, AnsweringRequest, AnsweringTarget, TaskParameters]):
    name: ClassVar[str] = "question-answering"
    primary_metric: ClassVar[str] = "f1"
    Options = AnsweringOptions
    Request = AnsweringRequest
    Target = AnsweringTarget
    Parameters = TaskParameters

    @classmethod
    def options_from(
        cls, given: dict[str, Any], targets: Sequence[AnsweringTarget]
    ) -> dict[str, Any]:
        return {"unanswerable": any(not target.answers for target in targets), **given}

    def head(self, family: str) -> HeadSpec:
        return HeadSpec(kind="token", outputs=2)

    def encode(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        may_lack = self.options.unanswerable
        prompt, tokens, truncated = fit_prompt(
            tokenizer,
            lambda context: _prompt(tokenizer, request.question, context, may_lack=may_lack),
            request.context,
            max_tokens,
            truncate=parameters.truncate,
            param="context",
        )
        read = _context_tokens(prompt, tokens)
        none = _no_answer_token(tokenizer, tokens) if may_lack else None
        return _row(prompt, tokens, read, read, none, truncated=truncated)

    def encode_parts(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> list[Encoded]:
        try:
            return [self.encode(tokenizer, request, TaskParameters(), max_tokens)]
        except TextTooLong:
            return self._windows(tokenizer, request, parameters, max_tokens)

    def _windows(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> list[Encoded]:
        """Return a row for each window of the context, each with the whole question.

        Tokens are cut, not text: read anew, a window's text might give others, and answers would shift. A window may
        lack the answer even if the context has one.
        """
        cut = parameters.truncate
        context, is_shortened = readable(request.context, max_tokens, truncate=cut, param="context")
        prompt = _prompt(tokenizer, request.question, context, may_lack=True)
        tokens = encode_prompt(tokenizer, prompt)
        first, end = _context_tokens(prompt, tokens)
        room = max_tokens - (len(tokens.ids) - (end - first))
        if room < 1:
            raise TextTooLong(
                f"'question' takes '{max_tokens - room}' tokens of a row; at most {max_tokens} fit, with the "
                "context. Shorten it.",
                param="question",
            )
        windows, is_cut = fit_windows(
            end - first, room, self.options.stride, truncate=cut, param="context"
        )
        none = _no_answer_token(tokenizer, tokens)
        truncated = is_cut or is_shortened
        return [
            _row(prompt, tokens, (first, end), (first + a, first + b), none, truncated=truncated)
            for a, b in windows
        ]

    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: AnsweringTarget) -> Labelled:
        return self.label_parts(tokenizer, [encoded], target)[0]

    def label_parts(
        self, tokenizer: Tokenizer, parts: Sequence[Encoded], target: AnsweringTarget
    ) -> list[Labelled]:
        """See `Task.label_parts`; a window that holds the answer in part only is taught that it holds none.

        Raises:
            TextTooLong: no window holds the answer whole.
        """
        if not target.answers:
            self._check_may_lack()
            return [_labelled(part, None) for part in parts]
        answer = target.answers[0]
        begin, end = answer.place()
        if end > parts[-1].offsets[-1][1]:
            raise InvalidData(
                f"The answer '{answer.text}' at {begin} lies beyond the context's end.",
                param="answers",
            )
        spans = [_span_of(part, begin, end, is_first=i == 0) for i, part in enumerate(parts)]
        if begin == end or (not any(spans) and len(parts) == 1):
            raise InvalidData(
                f"The tokenizer finds nothing to read in the answer '{answer.text[:60]}'. Leave the row out.",
                param="answers",
            )
        if not any(spans):
            raise TextTooLong(
                f"The answer '{answer.text[:60]}' lies whole in no window of the context. Raise the option 'stride', "
                "or leave the row out.",
                param="answers",
            )
        return [_labelled(part, span) for part, span in zip(parts, spans, strict=True)]

    def _check_may_lack(self) -> None:
        if not self.options.unanswerable:
            raise InvalidData(
                "'answers' is '[]', and the option 'unanswerable' is false. Set it to true, or leave the row out.",
                param="answers",
            )

    def postprocess(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        encoded: Encoded,
        output: RowOutput,
    ) -> dict[str, Any]:
        return self.postprocess_parts(tokenizer, request, [encoded], [output])

    def postprocess_parts(
        self,
        tokenizer: Tokenizer,
        request: AnsweringRequest,
        parts: Sequence[Encoded],
        outputs: Sequence[RowOutput],
    ) -> dict[str, Any]:
        best, span = best_of_windows(parts, outputs, self.options.max_answer_tokens)
        score = span.no_answer_score if self.options.unanswerable else None
        start, answer = _slice(request, parts[best], span)
        has_answer = bool(answer) and (score is None or score <= self.options.no_answer_threshold)
        log_probability = span.log_probability if has_answer or score is None else span.no_answer
        assert log_probability is not None
        return {
            "answer": answer if has_answer else "",
            "start": start if has_answer else None,
            "end": start + len(answer) if has_answer else None,
            "score": math.exp(log_probability),
            "has_answer": has_answer,
            "no_answer_score": score,
        }

    def calibrated(self, tokenizer: Tokenizer, observed: Sequence[Observation]) -> dict[str, Any]:
        """Return the options with the no-answer threshold that is best for ``observed``, if they have both kinds."""
        options = self.options.model_dump()
        references = [each.target.texts() for each in observed]
        if not (self.options.unanswerable and any(references) and not all(references)):
            return options
        scores, answers = [], []
        for each in observed:
            best, span = best_of_windows(each.parts, each.outputs, self.options.max_answer_tokens)
            assert span.no_answer_score is not None
            scores.append(span.no_answer_score)
            answers.append(_slice(each.request, each.parts[best], span)[1])
        f1 = [best_f1(answer, refs) for answer, refs in zip(answers, references, strict=True)]
        f1_if_not = [best_f1("", refs) for refs in references]
        return {**options, "no_answer_threshold": tune_threshold(scores, f1, f1_if_not)}

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[AnsweringTarget]
    ) -> Tally:
        return squad_tally([p["answer"] for p in predictions], [t.texts() for t in targets])

    def baselines(
        self, requests: Sequence[AnsweringRequest], targets: Sequence[AnsweringTarget]
    ) -> dict[str, dict[str, float]]:
        if all(target.answers for target in targets):
            return {}
        return {
            "never_answer": squad_tally([""] * len(targets), [t.texts() for t in targets]).metrics()
        }


def _prompt(tokenizer: Tokenizer, question: str, context: str, *, may_lack: bool) -> Prompt:
    """Return the prompt, where ``may_lack`` with a token beside the context to stand for no answer."""
    # The question goes first: a causal backbone must know it while it reads the context.
    before = f"Question: {question}\nContext: "
    # A causal backbone knows only at the end that the context held no answer. What precedes is not changed by it.
    after = "\nAnswer:" if may_lack and not tokenizer.closes_texts else ""
    return Prompt(before + context + after, len(before), len(before) + len(context))


def _no_answer_token(tokenizer: Tokenizer, tokens: Tokens) -> int:
    """Return the special token that an encoder's rows begin with, as in the BERT paper; else the last token."""
    begins_special = tokens.offsets[0] == (0, 0)
    return 0 if tokenizer.closes_texts and begins_special else len(tokens.ids) - 1


def _context_tokens(prompt: Prompt, tokens: Tokens) -> tuple[int, int]:
    first, end = tokens.between(prompt.start, prompt.stop)
    if first == end:
        raise InvalidRequest(
            "The tokenizer finds nothing to read in 'context'. Send one with words.",
            param="context",
        )
    return first, end


def _row(
    prompt: Prompt,
    tokens: Tokens,
    context: Window,
    window: Window,
    no_answer: int | None,
    *,
    truncated: bool,
) -> Encoded:
    """Return the row that has ``window`` in place of the whole context; both count the prompt's tokens.

    Args:
        no_answer: a place in the whole prompt, outside the context.
    """
    (first, end), (begin, stop) = context, window
    ids = tokens.ids[:first] + tokens.ids[begin:stop] + tokens.ids[end:]
    if no_answer is not None and no_answer >= end:
        no_answer -= len(tokens.ids) - len(ids)
    # A token may begin before the context (its leading space); clip it to the context.
    offsets = [
        (max(s - prompt.start, 0), min(e, prompt.stop) - prompt.start)
        for s, e in tokens.offsets[begin:stop]
    ]
    return Encoded(ids, truncated, (first, first + stop - begin), offsets, no_answer=no_answer)


def _span_of(part: Encoded, begin: int, end: int, *, is_first: bool) -> Window | None:
    """Return the first and last token of an answer; None if the row does not hold it whole."""
    # Before the first token of a first window are blanks at most, which some tokenizers drop.
    if end > part.offsets[-1][1] or (begin < part.offsets[0][0] and not is_first):
        return None
    inside = [i for i, (s, e) in enumerate(part.offsets) if s < end and e > begin]
    return (part.read[0] + inside[0], part.read[0] + inside[-1]) if inside else None


def _labelled(part: Encoded, span: Window | None) -> Labelled:
    if span is None:
        assert part.no_answer is not None
        span = (part.no_answer, part.no_answer)
    return Labelled(part.token_ids, list(span), part.read, no_answer=part.no_answer)


def _slice(request: AnsweringRequest, part: Encoded, span: AnswerSpan) -> tuple[int, str]:
    """Return where the answer begins in the context, and the answer, without blanks around it."""
    start, stop = part.offsets[span.first][0], part.offsets[span.last][1]
    text = request.context[start:stop]
    return start + len(text) - len(text.lstrip()), text.strip()
