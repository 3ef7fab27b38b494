"""Predictions, and what the engine has done so far."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from adapters.errors import HeadstockError, Unavailable
from adapters.runtime.rows import RowResult
from service.inference import EngineSpec, ReadStats, RunRows
from service.predictor import Predictor
from service.protocols import native

_LOOK_SECONDS = 0.25  # how often a waiting call looks whether its client is still there


async def _unless_gone(
    request: Request, call: Coroutine[Any, Any, list[RowResult]]
) -> list[RowResult]:
    """Await a call of the engine, and cancel it if the client goes away."""
    task = asyncio.create_task(call)
    while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
        if await request.is_disconnected():
            task.cancel()
            raise Unavailable("The client has gone; nobody reads this.")
    return await task


def predict_router(predictor: Predictor, engine: EngineSpec, max_rows: int) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predict"])

    @router.post("/predict")
    async def predict(body: native.PredictBody, request: Request) -> JSONResponse:
        """Answer one or many inputs, of one or many adapters, in order."""
        items = native.items_of(body, max_rows)
        prepared = await asyncio.to_thread(predictor.prepare, items)
        rows = [item.row for item in prepared if not isinstance(item, HeadstockError)]
        results = await _unless_gone(request, engine.call(RunRows(rows))) if rows else []
        return native.answer(await asyncio.to_thread(predictor.finish, prepared, results))

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """Return the engine's counters; ``largest`` is the most mixed call of the backbone."""
        return asdict(await engine.call(ReadStats()))

    return router
