"""What training, evaluation and serving must agree on for one kind of prediction: the text side, free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.errors import TextTooLong
from adapters.tasks.metrics import Tally
from adapters.tokenizer import Tokenizer, Tokens
from adapters.validation import check_number_of_fields

# A text of more code points per token than this is refused or cut before it is tokenized, which costs time and
# memory. Long tokens (runs of blanks, URLs) have tens of characters; no real text has this many on average.
CHARACTERS_PER_TOKEN = 64
# Into so many rows one request may be divided at most: it waits, and is paid for, as that many.
MAX_PARTS = 64


class Strict(BaseModel):
    """A pydantic model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        check_number_of_fields(given)
        return given


class TaskOptions(Strict):
    """What a bundle stores about its task; each task adds its own fields."""

    max_tokens: int | None = Field(
        None, ge=8, description="Longest prompt in tokens; the backbone's own limit if not set."
    )


class TaskParameters(Strict):
    """What one request may ask for; each task adds its own fields."""

    truncate: bool = Field(
        False, description="Cut a text that is too long, instead of refusing it."
    )


Pooling = Literal["first", "last", "mean"]
Loss = Literal["choice", "value", "tags", "labels"]
NO_LABEL = -100  # what cross entropy passes over
# The kinds of backbone. An encoder has no language head, so it can't write.
FAMILIES = ("decoder", "encoder", "encoder-decoder")


class HeadSpec(Strict):
    """How to build a head: ``sequence`` gives one vector a row, ``token`` one a token."""

    kind: Literal["sequence", "token"]
    outputs: int = Field(ge=1)
    pooling: Pooling = "last"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request as the engine takes it, with what `Task.postprocess` needs to read the answer.

    ``read`` is the range of tokens that the answer can lie in, ``offsets`` their places in the source
    text, [start, end) in code points. Where words are tagged, ``offsets`` are the words' places and
    ``first_tokens`` the token that each begins with, None for a word that has none left. Where text is
    written, ``stop`` are the strings that end it, ``logprobs`` tells whether to report them, and ``context`` are
    tokens that the text is read behind where it goes on with a prompt, for many decoders drop a text's first blank.
    ``no_answer`` is the token outside ``read`` that stands for there being no answer in the row; None: there
    always is one.
    """

    token_ids: list[int]
    truncated: bool = False
    read: tuple[int, int] = (0, 0)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    first_tokens: list[int | None] = field(default_factory=list)
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    context: tuple[int, ...] = ()
    no_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """One training row: tokens, and the labels its loss compares with.

    Args:
        labels: for ``choice`` a class index, a start and an end token, or the completion's token ids (which
            then also end ``token_ids``); for ``value`` one number; for ``labels`` a 0 or 1 for each class; for
            ``tags`` a class index for each token, `NO_LABEL` where there is none.
        loss: whether the head chooses (among classes, tokens of the row, or the vocabulary), gives a
            value, calls any number of classes right, or tags tokens.
        no_answer: a token that a start and an end may be besides those in ``read``, see `Encoded`.
        weight: of its loss, where it is a class of the row; the mean over a data set is 1.
    """

    token_ids: list[int]
    labels: list[int] | list[float]
    read: tuple[int, int] = (0, 0)
    loss: Loss = "choice"
    no_answer: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep all tokens.

    A row's draws depend on its own ``seed`` and position only, never on the rest of the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """How to generate: up to ``max_new_tokens``, ending at one of ``end_ids`` or of the ``stop`` strings.

    ``num_logprobs``: how many of the likeliest tokens to report beside each chosen one; None reports nothing.
    ``stream``: hand tokens over as they are made, not only at the end. ``context``: as of `Encoded`.
    """

    max_new_tokens: int
    end_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    stream: bool = False
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a generated token, and of the likeliest ones as (token id, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RowOutput:
    """What the engine gives back for a row: fp32 logits of the head, generated token ids, or an embedding.

    With a stop string, ``token_ids`` hold it; the task cuts the text.
    """

    logits: np.ndarray[Any, np.dtype[np.float32]] | None = None
    token_ids: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    embedding: np.ndarray[Any, np.dtype[np.float32]] | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One validation example as the engine answered it: what a task is calibrated by.

    ``parts`` and ``outputs`` are those of one request, see `Task.encode_parts`.
    """

    request: Any
    target: Any
    parts: list[Encoded]
    outputs: list[RowOutput]


RequestT = TypeVar("RequestT", bound=BaseModel)
TargetT = TypeVar("TargetT", bound=BaseModel)
OptionsT = TypeVar("OptionsT", bound=TaskOptions)
ParametersT = TypeVar("ParametersT", bound=TaskParameters)


class Task(ABC, Generic[OptionsT, RequestT, TargetT, ParametersT]):
    """One kind of prediction, set up with the options that a bundle stores."""

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    families: ClassVar[tuple[str, ...]] = FAMILIES
    Options: ClassVar[type[BaseModel]]
    Request: ClassVar[type[BaseModel]]
    Target: ClassVar[type[BaseModel]]
    Parameters: ClassVar[type[BaseModel]]

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @classmethod
    def options_from(cls, given: dict[str, Any], targets: Sequence[TargetT]) -> dict[str, Any]:
        """Return the options for training on these targets, such as the labels that occur in them."""
        return given

    @abstractmethod
    def head(self, family: str) -> HeadSpec | None:
        """Return the head this task needs on one of its ``families``, or None for the backbone's language head.

        On an encoder-decoder, a head reads the hidden states of the encoder.
        """

    @abstractmethod
    def encode(
        self, tokenizer: Tokenizer, request: RequestT, parameters: ParametersT, max_tokens: int
    ) -> Encoded:
        """Turn a request into tokens, the same way with and without a target.

        Raises:
            TextTooLong: more than ``max_tokens``, and ``parameters.truncate`` is off.
        """

    @abstractmethod
    def label(self, tokenizer: Tokenizer, encoded: Encoded, target: TargetT) -> Labelled:
        """Add the target to an encoded request.

        Raises:
            InvalidData: the target does not fit the request.
        """

    def label_parts(
        self, tokenizer: Tokenizer, parts: Sequence[Encoded], target: TargetT
    ) -> list[Labelled]:
        """Add the target to each row of a request, in the order of `encode_parts`.

        Raises:
            InvalidData: the target does not fit the request.
        """
        return [self.label(tokenizer, part, target) for part in parts]

    def generation(self, tokenizer: Tokenizer, parameters: ParametersT) -> Generation | None:
        """Return how to generate, or None for a task that takes one pass."""
        return None

    def max_new_tokens(self, parameters: ParametersT) -> int:
        """Return how long an answer may get, in tokens: 0 for a task that takes one pass."""
        return 0

    @abstractmethod
    def postprocess(
        self, tokenizer: Tokenizer, request: RequestT, encoded: Encoded, output: RowOutput
    ) -> dict[str, Any]:
        """Return the answer as DESIGN section 5 words it."""

    def encode_parts(
        self, tokenizer: Tokenizer, request: RequestT, parameters: ParametersT, max_tokens: int
    ) -> list[Encoded]:
        """Turn a request into the rows that answer it together: one, unless a task reads long texts in parts.

        Raises:
            TextTooLong: as `encode`, or it would take more than `MAX_PARTS` rows.
        """
        return [self.encode(tokenizer, request, parameters, max_tokens)]

    def postprocess_parts(
        self,
        tokenizer: Tokenizer,
        request: RequestT,
        parts: Sequence[Encoded],
        outputs: Sequence[RowOutput],
    ) -> dict[str, Any]:
        """Return the one answer of a request's rows, in the order of `encode_parts`."""
        return self.postprocess(tokenizer, request, parts[0], outputs[0])

    def follow_up(
        self,
        tokenizer: Tokenizer,
        request: RequestT,
        parameters: ParametersT,
        parts: Sequence[Encoded],
        answer: dict[str, Any],
    ) -> RequestT | None:
        """Return a request whose answer takes the place of this one, or None where ``answer`` stands."""
        return None

    def calibrated(self, tokenizer: Tokenizer, observed: Sequence[Observation]) -> dict[str, Any]:
        """Return the options with what a validation split decides, such as a temperature or a threshold."""
        return self.options.model_dump()

    @abstractmethod
    def tally(self, predictions: Sequence[dict[str, Any]], targets: Sequence[TargetT]) -> Tally:
        """Return what each answer adds to the task's metrics, among them ``primary_metric``: more of it is better.

        They go from 0 to 1, but for correlations (from -1) and errors in the data's own unit.
        """

    def score(
        self, predictions: Sequence[dict[str, Any]], targets: Sequence[TargetT]
    ) -> dict[str, float]:
        """Return the task's metrics of answers."""
        return self.tally(predictions, targets).metrics()

    def baselines(
        self, requests: Sequence[RequestT], targets: Sequence[TargetT]
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of answers that take no model, by name of the baseline."""
        return {}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt and where the text that may be cut stands in it, [start, stop) in code points.

    ``messages`` are where a chat template put what people wrote, in order: special tokens are read outside
    them only. Without any, the tokenizer adds its own special tokens around the prompt.
    """

    text: str
    start: int
    stop: int
    messages: tuple[tuple[int, int], ...] = ()


def fit_prompt(
    tokenizer: Tokenizer,
    render: Callable[[str], Prompt],
    text: str,
    max_tokens: int,
    *,
    truncate: bool,
    param: str,
    leave: str = "parameters.truncate",
) -> tuple[Prompt, Tokens, bool]:
    """Return prompt, tokens, and whether the end of ``text`` was cut to keep within ``max_tokens``.

    What surrounds the text in the prompt always stays whole.

    Args:
        leave: field by which the caller sets ``truncate``.

    Raises:
        TextTooLong: it does not fit, and either ``truncate`` is off or cutting the text can't help.
    """
    truncated = False
    if len(text) > max_tokens * CHARACTERS_PER_TOKEN:
        if not truncate:
            raise TextTooLong(
                f"'{param}' has {len(text)} characters, far more than {max_tokens} tokens hold. Shorten it, "
                f"or set {leave} to true.",
                param=param,
            )
        text, truncated = text[: max_tokens * CHARACTERS_PER_TOKEN], True
    prompt = render(text)
    tokens = encode_prompt(tokenizer, prompt)
    num_tokens = len(tokens.ids)
    while len(tokens.ids) > max_tokens:
        kept = _cut(prompt, tokens, max_tokens) if truncate else 0
        if not 0 < kept < len(text):
            raise TextTooLong(
                f"'{param}' makes a prompt of {num_tokens} tokens; at most {max_tokens} fit. "
                "Shorten it" + (f", or set {leave} to true." if not truncate else "."),
                param=param,
            )
        text, truncated = prompt.text[prompt.start : prompt.start + kept], True
        prompt = render(text)
        tokens = encode_prompt(tokenizer, prompt)
    return prompt, tokens, truncated


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> Tokens:
    """Return a prompt's tokens; what a user wrote never becomes a special token."""
    if not prompt.messages:
        return tokenizer.encode(prompt.text)
    return tokenizer.encode_chat(prompt.text, prompt.messages)


def _cut(prompt: Prompt, tokens: Tokens, max_tokens: int) -> int:
    """Return how many code points of the text to keep so that ``max_tokens`` may suffice."""
    first, end = tokens.between(prompt.start, prompt.stop)
    first_dropped = end - (len(tokens.ids) - max_tokens)
    if first_dropped <= first:
        return 0
    # At least one code point goes each time, so the loop that calls this ends.
    return min(tokens.offsets[first_dropped][0], prompt.stop - 1) - prompt.start
