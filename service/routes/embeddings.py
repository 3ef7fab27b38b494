"""Embeddings of the bare backbone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from fastapi import APIRouter, Request

from adapters.backbone import BackboneSpec
from adapters.errors import HeadstockError, NotFound
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Pooling, Prompt, fit_prompt
from adapters.tokenizer import Tokenizer
from adapters.validation import shown
from service.calls import EngineCalls
from service.protocols import embeddings
from service.routes.predict import in_time, unless_gone
from service.settings import Settings
from service.threads import in_quick_turns


def embeddings_router(
    backbone: BackboneSpec, tokenizer: Tokenizer, calls: EngineCalls, settings: Settings
) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predict"])
    max_tokens = min(settings.max_row_tokens, backbone.max_tokens)
    default: Pooling = "last" if backbone.family == "decoder" else "mean"

    def rows_of(
        body: embeddings.EmbeddingsBody, texts: list[str], deadline: float
    ) -> Iterator[Row]:
        return (
            Row(
                uuid.uuid4().hex,
                fit_prompt(
                    tokenizer,
                    lambda text: Prompt(text, 0, len(text)),
                    text,
                    max_tokens,
                    truncate=body.truncate,
                    param=f"input.{i}",
                    leave="truncate",
                )[1].ids,
                embed=body.pooling or default,
                deadline=deadline,
            )
            for i, text in enumerate(texts)
        )

    @router.post("/embeddings")
    async def embed(
        body: embeddings.EmbeddingsBody, request: Request
    ) -> embeddings.EmbeddingsAnswer:
        """Return a vector for each text: the pooled last hidden states of the backbone, no adapter."""
        if body.model != backbone.name:
            raise NotFound(
                f"No model {shown(body.model)} for embeddings; they are of the backbone, '{backbone.name}'.",
                param="model",
            )
        texts = embeddings.texts_of(body, settings.max_rows_per_call)
        deadline = time.monotonic() + settings.request_timeout_seconds

        async def run() -> tuple[list[Row], list[RowResult]]:
            with calls.open() as call:
                reading = in_quick_turns(rows_of(body, texts, deadline))
                rows = await in_time(deadline, reading)
                return rows, await call.run(rows)

        rows, results = await unless_gone(request, run())
        answer = embeddings.answer(body, results, sum(len(row.token_ids) for row in rows))
        if isinstance(answer, HeadstockError):
            raise answer
        return answer

    return router
