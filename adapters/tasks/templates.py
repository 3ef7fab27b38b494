"""One text, or a pair of them, inside a template: what classification and regression read."""

from __future__ import annotations

from pydantic import Field, field_validator

from adapters.tasks.base import (
    Encoded,
    HeadSpec,
    Prompt,
    Strict,
    TaskOptions,
    TaskParameters,
    fit_prompt,
)
from adapters.tasks.stop_words import Language, without_stop_words
from adapters.tokenizer import Tokenizer


class TemplateOptions(TaskOptions):
    template: str = Field("{text}", description="Prompt around the text; must hold {text} once.")
    stop_words: Language | None = Field(
        None, description="Leave this language's stop words out of texts."
    )

    @field_validator("template")
    @classmethod
    def _holds_text(cls, template: str) -> str:
        if template.count("{text}") != 1:
            raise ValueError(f"'{template}' must hold {{text}} exactly once")
        return template


class TextRequest(Strict):
    text: str = Field(min_length=1, pattern=r"\S")
    text_pair: str | None = Field(None, min_length=1, pattern=r"\S")


def encode_text(
    tokenizer: Tokenizer,
    options: TemplateOptions,
    request: TextRequest,
    parameters: TaskParameters,
    max_tokens: int,
) -> Encoded:
    """Return the tokens of a template around a text and, below it, its pair; only the text is ever cut.

    Raises:
        TextTooLong: more than ``max_tokens``, and ``parameters.truncate`` is off.
    """
    before, after = options.template.split("{text}")
    text, text_pair = _reduced(request.text, options), _reduced(request.text_pair or "", options)
    pair = f"\n{text_pair}" if text_pair else ""

    def render(text: str) -> Prompt:
        return Prompt(f"{before}{text}{pair}{after}", len(before), len(before) + len(text))

    _, tokens, truncated = fit_prompt(
        tokenizer, render, text, max_tokens, truncate=parameters.truncate, param="text"
    )
    return Encoded(tokens.ids, truncated)


def _reduced(text: str, options: TemplateOptions) -> str:
    return without_stop_words(text, options.stop_words) if options.stop_words else text


def sequence_head(outputs: int, family: str) -> HeadSpec:
    """Return the head that reads a whole text where the backbone has seen all of it."""
    # A causal backbone has read the whole text only at its last token.
    pooling = "last" if family == "decoder" else "mean"
    return HeadSpec(kind="sequence", outputs=outputs, pooling=pooling)
