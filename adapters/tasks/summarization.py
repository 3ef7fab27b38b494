"""Summaries: a short text in place of a long one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from adapters.errors import TextTooLong
from adapters.tasks.base import CHARACTERS_PER_TOKEN, MAX_PARTS, Encoded, RowOutput, Strict
from adapters.tasks.generation import (
    MAX_NEW_TOKENS,
    GenerationParameters,
    InstructedTask,
    InstructionOptions,
)
from adapters.tasks.metrics import Tally, rouge_tally
from adapters.tasks.pieces import join_texts, split_text
from adapters.tokenizer import Tokenizer

_LEADS = (
    1,
    3,
)  # sentences: as long as a headline, and as an abstract of the news (See et al., arXiv 1704.04368)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")


class SummarizationOptions(InstructionOptions):
    instruction: str = Field(
        "Summarize the text in one sentence.",
        pattern=r"\S|^$",
        description="What the backbone is told; the text follows it. Empty: the text alone.",
    )
    max_new_tokens: int = Field(
        64, ge=1, le=MAX_NEW_TOKENS, description="Default length limit of a summary, in tokens."
    )


class SummarizationParameters(GenerationParameters):
    long_text: Literal["refuse", "cut", "parts"] = Field(
        "refuse",
        description="What becomes of a text that is too long: refused, cut (as by truncate), or summarized in parts.",
    )

    @model_validator(mode="after")
    def _agree(self) -> SummarizationParameters:
        if self.truncate and self.long_text != "cut" and "long_text" in self.model_fields_set:
            raise ValueError(f"truncate cuts, and long_text '{self.long_text}' does not; give one")
        self.truncate = self.truncate or self.long_text == "cut"
        return self


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
    Parameters = SummarizationParameters

    def encode_parts(
        self,
        tokenizer: Tokenizer,
        request: SummarizationRequest,
        parameters: GenerationParameters,
        max_tokens: int,
    ) -> list[Encoded]:
        try:
            return [self.encode(tokenizer, request, parameters, max_tokens)]
        except TextTooLong:
            if not _takes_parts(parameters) or self.max_new_tokens(parameters) >= max_tokens:
                raise
        return self._pieces(tokenizer, request.text, parameters, max_tokens)

    def _pieces(
        self, tokenizer: Tokenizer, text: str, parameters: GenerationParameters, max_tokens: int
    ) -> list[Encoded]:
        """Return a row for each piece of a text, of as few pieces as fit."""
        if len(text) <= MAX_PARTS * max_tokens * CHARACTERS_PER_TOKEN:
            room = self._room(parameters, max_tokens)
            fewest = len(tokenizer.encode(text, add_special=False).ids) // room + 1
            for num_pieces in range(max(fewest, 2), MAX_PARTS + 1):
                pieces = [SummarizationRequest(text=each) for each in split_text(text, num_pieces)]
                try:
                    return [self.encode(tokenizer, p, parameters, max_tokens) for p in pieces]
                except TextTooLong:
                    continue
        raise TextTooLong(
            f"'text' has '{len(text)}' characters, more than {MAX_PARTS} parts hold in rows of {max_tokens} "
            "tokens, beside instruction and answer. Shorten it, or set parameters.long_text to 'cut'.",
            param="text",
        )

    def postprocess_parts(
        self,
        tokenizer: Tokenizer,
        request: SummarizationRequest,
        parts: Sequence[Encoded],
        outputs: Sequence[RowOutput],
    ) -> dict[str, Any]:
        answers = [
            self.postprocess(tokenizer, request, part, output)
            for part, output in zip(parts, outputs, strict=True)
        ]
        cut_short = any(answer["finish_reason"] == "length" for answer in answers)
        joined: dict[str, Any] = {
            "summary": join_texts([answer["summary"] for answer in answers]),
            "finish_reason": "length" if cut_short else "stop",
        }
        if "logprobs" in answers[0]:
            joined["logprobs"] = [each for answer in answers for each in answer["logprobs"]]
        return joined

    def follow_up(
        self,
        tokenizer: Tokenizer,
        request: SummarizationRequest,
        parameters: GenerationParameters,
        parts: Sequence[Encoded],
        answer: dict[str, Any],
    ) -> SummarizationRequest | None:
        """Have joined summaries summarized that are longer than one summary may be."""
        summary = answer["summary"]
        num_tokens = len(tokenizer.encode(summary, add_special=False).ids)
        # Each round has to halve the text at least: so they end, however long the answers are.
        if len(parts) == 1 or len(summary) > len(request.text) / 2:
            return None
        is_short = num_tokens <= self.max_new_tokens(parameters)
        return None if is_short else SummarizationRequest(text=summary)

    def source(self, request: SummarizationRequest) -> tuple[str, str]:
        return request.text, "text"

    def completion(self, target: SummarizationTarget) -> str:
        return target.summary

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[SummarizationTarget]
    ) -> Tally:
        return rouge_tally([p["summary"] for p in predictions], [t.summary for t in targets])

    def baselines(
        self,
        requests: Sequence[SummarizationRequest],
        targets: Sequence[SummarizationTarget],
    ) -> dict[str, dict[str, float]]:
        summaries = [target.summary for target in targets]
        leads = {n: [first_sentences(request.text, n) for request in requests] for n in _LEADS}
        return {f"lead_{n}": rouge_tally(lead, summaries).metrics() for n, lead in leads.items()}


def _takes_parts(parameters: GenerationParameters) -> bool:
    return isinstance(parameters, SummarizationParameters) and parameters.long_text == "parts"


def first_sentences(text: str, count: int) -> str:
    """Return a text up to the end of its first sentences (the lead-k baseline of summarization)."""
    ends = [match.start() for match in _SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[count - 1]] if len(ends) >= count else text.strip()
