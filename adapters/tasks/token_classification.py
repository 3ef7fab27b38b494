"""Named places in a text: entities, found word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import (
    NO_LABEL,
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
from adapters.tasks.metrics import Tally, span_tally
from adapters.tasks.windows import Window, fit_windows, readable
from adapters.tasks.words import Place, Span, join_words, read_spans, split_words, write_tags
from adapters.tokenizer import Tokenizer, Tokens
from adapters.validation import listed

Word = Annotated[str, Field(min_length=1, pattern=r"\S")]
Tag = Annotated[str, Field(min_length=1)]


class TaggingOptions(TaskOptions):
    labels: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="Kinds of entity; their order is the head's."
    )
    stride: int = Field(
        128,
        ge=0,
        description="Tokens that neighbouring windows of a long text share, half a window at most.",
    )

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) < len(labels):
            raise ValueError("a label stands in the list twice")
        return labels


class TaggingRequest(Strict):
    text: str | None = Field(None, min_length=1, pattern=r"\S")
    tokens: list[Word] | None = Field(None, min_length=1, fail_fast=True)

    @model_validator(mode="after")
    def _either(self) -> TaggingRequest:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give either 'text' or 'tokens'")
        return self


class TaggingTarget(Strict):
    tokens: list[Word] = Field(min_length=1)
    tags: list[Tag]

    @field_validator("tags")
    @classmethod
    def _are_bio(cls, tags: list[str], info: ValidationInfo) -> list[str]:
        tokens = info.data.get("tokens")
        if tokens is not None and len(tokens) != len(tags):
            raise ValueError(f"{len(tags)} tags for {len(tokens)} tokens; give each token one")
        for tag in tags:
            if tag != "O" and not (tag.startswith(("B-", "I-")) and tag[2:]):
                raise ValueError(f"'{tag}' is no BIO tag; write 'O', 'B-label' or 'I-label'")
        return tags

    def labels(self) -> set[str]:
        return {tag[2:] for tag in self.tags if tag != "O"}


class TokenClassification(Task[TaggingOptions, TaggingRequest, TaggingTarget, TaskParameters]):
    name: ClassVar[str] = "token-classification"
    primary_metric: ClassVar[str] = "f1"
    Options = TaggingOptions
    Request = TaggingRequest
    Target = TaggingTarget
    Parameters = TaskParameters

    def __init__(self, options: TaggingOptions) -> None:
        super().__init__(options)
        # Both tags of every label: a small file may hold only one of them.
        self.tags = ["O", *(f"{prefix}-{label}" for label in options.labels for prefix in "BI")]

    @classmethod
    def options_from(
        cls, given: dict[str, Any], targets: Sequence[TaggingTarget]
    ) -> dict[str, Any]:
        return {
            "labels": sorted({label for target in targets for label in target.labels()}),
            **given,
        }

    def head(self, family: str) -> HeadSpec:
        return HeadSpec(kind="token", outputs=len(self.tags))

    def encode(
        self,
        tokenizer: Tokenizer,
        request: TaggingRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> Encoded:
        text, places = _words_of(request)
        _, tokens, truncated = fit_prompt(
            tokenizer,
            lambda kept: Prompt(kept, 0, len(kept)),
            text,
            max_tokens,
            truncate=parameters.truncate,
            param=_param(request),
        )
        places, firsts = _read_words(request, places, tokens)
        return Encoded(tokens.ids, truncated, offsets=places, first_tokens=firsts)

    def encode_parts(
        self,
        tokenizer: Tokenizer,
        request: TaggingRequest,
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
        request: TaggingRequest,
        parameters: TaskParameters,
        max_tokens: int,
    ) -> list[Encoded]:
        """Return a row for each window; each word is one row's to answer, the one that has most around it."""
        cut, param = parameters.truncate, _param(request)
        text, places = _words_of(request)
        text, is_shortened = readable(text, max_tokens, truncate=cut, param=param)
        tokens = tokenizer.encode(text)
        places, firsts = _read_words(request, places, tokens)
        first, end = tokens.between(0, len(text))
        room = max_tokens - (len(tokens.ids) - (end - first))
        windows, is_cut = fit_windows(
            end - first, room, self.options.stride, truncate=cut, param=param
        )
        owners = [None if at is None else _most_context(windows, at - first) for at in firsts]
        rows = [
            Encoded(
                tokens.ids[:first] + tokens.ids[first + a : first + b] + tokens.ids[end:],
                is_shortened or is_cut,
                offsets=places,
                first_tokens=[
                    at - a if at is not None and owner == i else None
                    for at, owner in zip(firsts, owners, strict=True)
                ],
            )
            for i, (a, b) in enumerate(windows)
        ]
        # A row inside one very long word has nothing to answer, and nothing to learn from.
        return [row for row in rows if any(at is not None for at in row.first_tokens)]

    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: TaggingTarget) -> Labelled:
        labels = [NO_LABEL] * len(encoded.token_ids)
        indices = {tag: i for i, tag in enumerate(self.tags)}
        for tag, first in zip(target.tags, encoded.first_tokens, strict=True):
            if tag not in indices:
                raise InvalidData(
                    f"Tag '{tag}' is of none of the labels {listed(self.options.labels)}.",
                    param="tags",
                )
            if first is not None and labels[first] == NO_LABEL:
                labels[first] = indices[tag]
        return Labelled(encoded.token_ids, labels, loss="tags")

    def postprocess(
        self, tokenizer: Tokenizer, request: TaggingRequest, encoded: Encoded, output: RowOutput
    ) -> dict[str, Any]:
        return self.postprocess_parts(tokenizer, request, [encoded], [output])

    def postprocess_parts(
        self,
        tokenizer: Tokenizer,
        request: TaggingRequest,
        parts: Sequence[Encoded],
        outputs: Sequence[RowOutput],
    ) -> dict[str, Any]:
        places = parts[0].offsets
        tags, scores = ["O"] * len(places), [0.0] * len(places)
        for part, output in zip(parts, outputs, strict=True):
            assert output.logits is not None
            shifted_TO = np.exp(output.logits - output.logits.max(axis=1, keepdims=True))
            scores_TO = shifted_TO / shifted_TO.sum(axis=1, keepdims=True)
            for word, at in enumerate(part.first_tokens):
                if at is not None:
                    tags[word] = self.tags[scores_TO[at].argmax()]
                    scores[word] = float(scores_TO[at].max())
        text, _ = _words_of(request)
        return {"entities": [_entity(text, span, places, scores) for span in read_spans(tags)]}

    def tally(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[TaggingTarget]
    ) -> Tally:
        predicted = [
            _tags_of(p["entities"], t.tokens) for p, t in zip(predictions, targets, strict=True)
        ]
        return span_tally(predicted, [target.tags for target in targets])


def _param(request: TaggingRequest) -> str:
    return "text" if request.tokens is None else "tokens"


def _read_words(
    request: TaggingRequest, places: Sequence[Place], tokens: Tokens
) -> tuple[list[Place], list[int | None]]:
    """Return the places of a request's words, and the token that each begins with.

    Raises:
        InvalidRequest: no word has a token.
    """
    firsts = _first_tokens(tokens, places)
    if all(first is None for first in firsts):
        raise InvalidRequest(
            "The tokenizer finds nothing to read in the text. Send one with words.",
            param=_param(request),
        )
    return _merge_words(places, firsts) if request.tokens is None else (list(places), firsts)


def _most_context(windows: Sequence[Window], at: int) -> int | None:
    """Return the window in which a token has most on its shorter side; None behind the last one."""
    inside = [i for i, (first, end) in enumerate(windows) if first <= at < end]
    return max(inside, key=lambda i: min(at - windows[i][0], windows[i][1] - 1 - at), default=None)


def _words_of(request: TaggingRequest) -> tuple[str, list[Place]]:
    """Return a request's text and where its words stand in it."""
    if request.tokens is not None:
        return join_words(request.tokens)
    text = request.text or ""
    return text, split_words(text)


def _first_tokens(tokens: Tokens, places: Sequence[Place]) -> list[int | None]:
    """Return the first token of each word; None where the text was cut, or the tokenizer drops the word."""
    firsts: list[int | None] = []
    at = 0
    for start, end in places:
        while at < len(tokens.ids) and tokens.offsets[at][1] <= start:
            at += 1
        begins = at < len(tokens.ids) and tokens.offsets[at][0] < end
        firsts.append(at if begins else None)
    return firsts


def _merge_words(
    places: Sequence[Place], firsts: Sequence[int | None]
) -> tuple[list[Place], list[int | None]]:
    """Make one word of those that begin in the same token: it can give them one tag only."""
    merged: list[Place] = []
    kept: list[int | None] = []
    for place, first in zip(places, firsts, strict=True):
        if kept and first is not None and kept[-1] == first:
            merged[-1] = (merged[-1][0], place[1])
        else:
            merged.append(place)
            kept.append(first)
    return merged, kept


def _entity(
    text: str, span: Span, places: Sequence[Place], scores: Sequence[float]
) -> dict[str, Any]:
    start, end = places[span.first][0], places[span.last][1]
    inside = scores[span.first : span.last + 1]
    return {
        "label": span.label,
        "text": text[start:end],
        "start": start,
        "end": end,
        "score": sum(inside) / len(inside),
    }


def _tags_of(entities: Sequence[dict[str, Any]], tokens: Sequence[str]) -> list[str]:
    """Return the tags of entities found in tokens; they begin and end where tokens do."""
    _, places = join_words(tokens)
    firsts = {start: i for i, (start, _) in enumerate(places)}
    lasts = {end: i for i, (_, end) in enumerate(places)}
    spans = [Span(e["label"], firsts[e["start"]], lasts[e["end"]]) for e in entities]
    return write_tags(spans, len(tokens))
