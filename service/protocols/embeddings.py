"""``POST /v1/embeddings`` as the ``openai`` package sends and parses it: vectors of the bare backbone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from adapters.errors import HeadstockError, InvalidRequest
from adapters.runtime.rows import RowResult
from adapters.tasks.base import Pooling
from adapters.validation import shown
from service.bodies import Body

# Not a union of both: of that, pydantic tells what is wrong with each, and of the list all that is.
Texts = Annotated[
    list[str],
    BeforeValidator(
        lambda given: [given] if isinstance(given, str) else given,
        json_schema_input_type=str | list[str],
    ),
]


class EmbeddingsBody(Body):
    """OpenAI's body; ``pooling`` and ``truncate`` are ours."""

    model_config = ConfigDict(extra="forbid")
    is_stored: ClassVar[bool] = False

    model: str = Field(description="the backbone's name")
    input: Texts = Field(description="one text or several", fail_fast=True)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    pooling: Pooling | None = Field(None, description="mean on encoders, last on decoders if unset")
    truncate: bool = False


class Vector(TypedDict):
    """The vector of one text: fp32 numbers, or those as base64 of little-endian bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(TypedDict):
    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: EmbeddingUsage


def texts_of(body: EmbeddingsBody, max_rows: int) -> list[str]:
    """Return the texts of a body.

    Raises:
        InvalidRequest: there are none or too many, or one is empty.
    """
    texts = body.input
    if not 1 <= len(texts) <= max_rows:
        how = "Split it." if texts else "Send some text."
        raise InvalidRequest(
            f"The call has '{len(texts)}' inputs; 1 to {max_rows} go into one call. {how}",
            param="input",
        )
    for i, text in enumerate(texts):
        if not text.strip():
            raise InvalidRequest(f"Input {i} is {shown(text)}. Send some text.", param=f"input.{i}")
    return texts


def answer(
    body: EmbeddingsBody, results: Sequence[RowResult], num_tokens: int
) -> EmbeddingsAnswer | HeadstockError:
    """Return OpenAI's answer, or the first error: it has no place for an error per text."""
    data: list[Vector] = []
    for i, result in enumerate(results):
        if result.error is not None:
            return result.error
        assert result.output is not None
        assert result.output.embedding is not None
        vector = _encode(result.output.embedding, body.encoding_format)
        data.append({"object": "embedding", "index": i, "embedding": vector})
    usage: EmbeddingUsage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _encode(vector: np.ndarray[Any, np.dtype[np.float32]], form: str) -> list[float] | str:
    if form == "float":
        return [float(x) for x in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
