"""What all tasks that write text share: the parameters of a request, the prompt's room, and the answer's text."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from adapters.errors import TextTooLong
from adapters.tasks.base import (
    Encoded,
    Generation,
    Labelled,
    Prompt,
    RowOutput,
    Sampling,
    Task,
    TaskOptions,
    TaskParameters,
    TokenLogprob,
    fit_prompt,
)
from adapters.tasks.prompts import instruction_prompt
from adapters.text_stream import cut_at_stop
from adapters.tokenizer import Tokenizer

MAX_NEW_TOKENS = 4096
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
# JSON has no infinity; a log-probability this small is none.
_LEAST_LOGPROB = -9999.0

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class GenerationOptions(TaskOptions):
    max_new_tokens: int = Field(
        256, ge=1, le=MAX_NEW_TOKENS, description="Default length limit of an answer, in tokens."
    )


class InstructionOptions(GenerationOptions):
    instruction: str = Field(
        "",
        pattern=r"\S|^$",
        description="What the backbone is told; the text follows it. Empty: the text alone.",
    )


class GenerationParameters(TaskParameters):
    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description="Length limit of this answer, in tokens."
    )
    temperature: float = Field(
        0.0, ge=0, le=2, description="0 takes the likeliest token each time; more draws freely."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens that have this probability."
    )
    top_k: int = Field(0, ge=0, description="Draw from this many tokens only; 0: from all.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The same seed draws the same answer again."
    )
    stop: Annotated[
        list[StopString],
        # The OpenAI and Hugging Face routes take one string as well.
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    ] = Field(
        default_factory=list,
        max_length=MAX_STOPS,
        fail_fast=True,
        description="The answer ends before the first of these strings.",
    )
    logprobs: bool = Field(False, description="Report each token's log-probability.")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_TOP_LOGPROBS, description="Report this many of the likeliest tokens, too."
    )

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, count: int, info: ValidationInfo) -> int:
        if count and not info.data.get("logprobs"):
            raise ValueError("set logprobs to true as well")
        return count

    def sampling(self) -> Sampling:
        """Return how tokens are drawn; without a seed, every call gives another one."""
        if self.temperature == 0:
            return Sampling()
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, self.top_k, seed)


GenerationOptionsT = TypeVar("GenerationOptionsT", bound=GenerationOptions)
InstructionOptionsT = TypeVar("InstructionOptionsT", bound=InstructionOptions)
RequestT = TypeVar("RequestT", bound=BaseModel)
TargetT = TypeVar("TargetT", bound=BaseModel)


class WritingTask(
    Task[GenerationOptionsT, RequestT, TargetT, GenerationParameters],
    Generic[GenerationOptionsT, RequestT, TargetT],
):
    """A task that answers with text of the backbone's own language head."""

    families: ClassVar[tuple[str, ...]] = ("decoder", "encoder-decoder")
    answer_field: ClassVar[str]
    Parameters = GenerationParameters

    @abstractmethod
    def source(self, request: RequestT) -> tuple[str, str]:
        """Return the part of a request that may be cut, and the name of its field."""

    @abstractmethod
    def render(self, tokenizer: Tokenizer, request: RequestT, text: str) -> Prompt:
        """Return a request's prompt, with ``text`` in the place of its source."""

    @abstractmethod
    def completion(self, target: TargetT) -> str:
        """Return the text to learn."""

    def clean(self, text: str) -> str:
        """Return an answer as it is given out."""
        return text.strip()

    def head(self, family: str) -> None:
        return None

    def encode(
        self,
        tokenizer: Tokenizer,
        request: RequestT,
        parameters: GenerationParameters,
        max_tokens: int,
    ) -> Encoded:
        text, param = self.source(request)
        _, tokens, truncated = fit_prompt(
            tokenizer,
            lambda kept: self.render(tokenizer, request, kept),
            text,
            self._room(parameters, max_tokens),
            truncate=parameters.truncate,
            param=param,
        )
        return Encoded(
            tokens.ids, truncated, stop=tuple(parameters.stop), logprobs=parameters.logprobs
        )

    def _room(self, parameters: GenerationParameters, max_tokens: int) -> int:
        """Return how many tokens a prompt may have, so that the longest answer still fits behind it."""
        num_new = self.max_new_tokens(parameters)
        if num_new >= max_tokens:
            raise TextTooLong(
                f"max_new_tokens is '{num_new}', but prompt and answer together have room for "
                f"{max_tokens}. Ask for fewer.",
                param="max_new_tokens",
            )
        return max_tokens - num_new

    def max_new_tokens(self, parameters: GenerationParameters) -> int:
        return parameters.max_new_tokens or self.options.max_new_tokens

    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: TargetT) -> Labelled:
        text, context = self.completion(target), encoded.context
        completion = (
            tokenizer.encode_behind(context, text)
            if context
            else tokenizer.encode(text, add_special=False).ids
        )
        labels = [*completion, tokenizer.end_ids[0]]
        return Labelled(encoded.token_ids + labels, labels)

    def generation(self, tokenizer: Tokenizer, parameters: GenerationParameters) -> Generation:
        return Generation(
            self.max_new_tokens(parameters),
            tokenizer.end_ids,
            parameters.sampling(),
            tuple(parameters.stop),
            parameters.top_logprobs if parameters.logprobs else None,
        )

    def postprocess(
        self, tokenizer: Tokenizer, request: RequestT, encoded: Encoded, output: RowOutput
    ) -> dict[str, Any]:
        before = tokenizer.decode(encoded.context)
        whole = tokenizer.decode([*encoded.context, *output.token_ids])[len(before) :]
        text = cut_at_stop(whole, encoded.stop)
        answer: dict[str, Any] = {
            self.answer_field: self.clean(text),
            "finish_reason": output.finish_reason if text == whole else "stop",
        }
        if encoded.logprobs:
            answer["logprobs"] = [_told(tokenizer, each) for each in output.logprobs]
        return answer


class InstructedTask(
    WritingTask[InstructionOptionsT, RequestT, TargetT],
    Generic[InstructionOptionsT, RequestT, TargetT],
):
    """A writing task whose prompt is an instruction and one text."""

    def render(self, tokenizer: Tokenizer, request: RequestT, text: str) -> Prompt:
        return instruction_prompt(tokenizer, self.options.instruction, text)


def _told(tokenizer: Tokenizer, chosen: TokenLogprob) -> dict[str, Any]:
    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.decode_token(token_id),
            "logprob": max(logprob, _LEAST_LOGPROB),
        }

    return {
        **one(chosen.token_id, chosen.logprob),
        "top": [one(token_id, logprob) for token_id, logprob in chosen.top],
    }
