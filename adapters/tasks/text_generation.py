"""Free text: what follows a prompt or a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from adapters.tasks.base import Encoded, Prompt, Strict
from adapters.tasks.generation import GenerationOptions, GenerationParameters, WritingTask
from adapters.tasks.metrics import Tally, completion_tally
from adapters.tasks.prompts import Message, conversation_prompt
from adapters.tokenizer import Tokenizer


class TextGenerationOptions(GenerationOptions):
    chat: bool = Field(
        True,
        description="Ask a prompt as a user's message, so that a chat asks the same; off: go on with it as it is.",
    )


class TextGenerationRequest(Strict):
    prompt: str | None = Field(None, min_length=1, pattern=r"\S")
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)

    @field_validator("messages")
    @classmethod
    def _ask_for_an_answer(cls, messages: list[Message] | None) -> list[Message] | None:
        if messages and messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's own; end with the user's")
        return messages

    @model_validator(mode="after")
    def _either(self) -> TextGenerationRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self


class TextGenerationTarget(Strict):
    completion: str = Field(min_length=1, pattern=r"\S")


class TextGeneration(
    WritingTask[TextGenerationOptions, TextGenerationRequest, TextGenerationTarget]
):
    """Primary is ROUGE-L, for free text is seldom repeated word for word; exact match is told beside it."""

    name: ClassVar[str] = "text-generation"
    primary_metric: ClassVar[str] = "rouge_l"
    answer_field: ClassVar[str] = "text"
    Options = TextGenerationOptions
    Request = TextGenerationRequest
    Target = TextGenerationTarget

    def source(self, request: TextGenerationRequest) -> tuple[str, str]:
        if request.messages:
            return request.messages[-1].content, "messages"
        return request.prompt or "", "prompt"

    def render(self, tokenizer: Tokenizer, request: TextGenerationRequest, text: str) -> Prompt:
        if request.messages is None and not self.options.chat:
            return Prompt(text, 0, len(text))
        *before, last = request.messages or [Message.model_construct(role="user", content=text)]
        return conversation_prompt(tokenizer, [*before, last.model_copy(update={"content": text})])

    def encode(
        self,
        tokenizer: Tokenizer,
        request: TextGenerationRequest,
        parameters: GenerationParameters,
        max_tokens: int,
    ) -> Encoded:
        encoded = super().encode(tokenizer, request, parameters, max_tokens)
        # Behind a text that is closed, another begins: the answer of an encoder-decoder.
        goes_on = request.messages is None and not self.options.chat and not tokenizer.closes_texts
        return replace(encoded, context=tokenizer.context) if goes_on else encoded

    def completion(self, target: TextGenerationTarget) -> str:
        return target.completion

    def clean(self, text: str) -> str:
        return text  # blanks matter where a prompt is gone on with

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[TextGenerationTarget]
    ) -> Tally:
        return completion_tally([p["text"] for p in predictions], [t.completion for t in targets])
