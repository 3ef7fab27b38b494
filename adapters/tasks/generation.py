"""Tasks that answer with new text, written by the backbone's own language head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from adapters.errors import InvalidRequest, TextTooLong
from adapters.tasks.base import (
    Encoded,
    Generation,
    Labelled,
    Prompt,
    RowOutput,
    Strict,
    Task,
    TaskOptions,
    TaskParameters,
    fit_prompt,
)
from adapters.tasks.metrics import rouge_metrics
from adapters.tokenizer import Tokenizer


class SummarizationOptions(TaskOptions):
    instruction: str = Field(
        "Summarize the text in one sentence.",
        min_length=1,
        description="What the backbone is told; the text follows it.",
    )
    max_new_tokens: int = Field(64, ge=1, le=1024, description="Default length limit of a summary.")


class SummarizationRequest(Strict):
    text: str = Field(min_length=1, pattern=r"\S")


class SummarizationTarget(Strict):
    summary: str = Field(min_length=1, pattern=r"\S")


class SummarizationParameters(TaskParameters):
    max_new_tokens: int | None = Field(
        None, ge=1, le=1024, description="Length limit of this summary, in tokens."
    )


class Summarization(
    Task[SummarizationOptions, SummarizationRequest, SummarizationTarget, SummarizationParameters]
):
    name: ClassVar[str] = "summarization"
    primary_metric: ClassVar[str] = "rouge_l"
    Options = SummarizationOptions
    Request = SummarizationRequest
    Target = SummarizationTarget
    Parameters = SummarizationParameters

    def head(self, family: str) -> None:
        return None

    def encode(
        self,
        tokenizer: Tokenizer,
        request: SummarizationRequest,
        parameters: SummarizationParameters,
        max_tokens: int,
    ) -> Encoded:
        def render(text: str) -> Prompt:
            return instruction_prompt(tokenizer, self.options.instruction, text)

        num_new = self._max_new_tokens(parameters)
        room = max_tokens - num_new
        if room < 1:
            raise TextTooLong(
                f"max_new_tokens is '{num_new}', but prompt and answer together have room for "
                f"{max_tokens}. Ask for fewer.",
                param="max_new_tokens",
            )
        _, tokens, truncated = fit_prompt(
            tokenizer, render, request.text, room, truncate=parameters.truncate, param="text"
        )
        return Encoded(tokens.ids, truncated)

    def label(
        self, tokenizer: Tokenizer, encoded: Encoded, target: SummarizationTarget
    ) -> Labelled:
        completion = tokenizer.encode(target.summary, add_special=False).ids
        labels = [*completion, tokenizer.end_ids[0]]
        return Labelled(encoded.token_ids + labels, labels)

    def generation(self, tokenizer: Tokenizer, parameters: SummarizationParameters) -> Generation:
        return Generation(self._max_new_tokens(parameters), tokenizer.end_ids)

    def _max_new_tokens(self, parameters: SummarizationParameters) -> int:
        return parameters.max_new_tokens or self.options.max_new_tokens

    def postprocess(
        self,
        tokenizer: Tokenizer,
        request: SummarizationRequest,
        encoded: Encoded,
        output: RowOutput,
    ) -> dict[str, Any]:
        summary = tokenizer.decode(output.token_ids).strip()
        return {"summary": summary, "finish_reason": output.finish_reason}

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


def instruction_prompt(tokenizer: Tokenizer, instruction: str, text: str) -> Prompt:
    """Return the prompt that tells the backbone what to do with a text, as a chat if it knows chats."""
    content = f"{instruction}\n\n{text}"
    if not tokenizer.has_chat:
        whole = f"{content}\n\n"
        return Prompt(whole, len(instruction) + 2, len(instruction) + 2 + len(text))
    whole = tokenizer.chat([{"role": "user", "content": content}])
    # A template may strip the message; what is left of it is found then.
    kept = content if content in whole else content.strip()
    begin = whole.find(kept)
    if begin < 0:
        raise InvalidRequest(
            "The backbone's chat template changes the text; it can't be used.", param="text"
        )
    stripped = len(content) - len(content.lstrip()) if kept != content else 0
    start = begin + len(instruction) + 2 - stripped
    return Prompt(whole, start, begin + len(kept), message=(begin, begin + len(kept)))


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence (the lead-1 baseline of summarization)."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
