"""Predictions, and what the engine has done so far."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from adapters.errors import HeadstockError
from service.inference import EngineSpec, ReadStats, RunRows
from service.predictor import Predictor
from service.protocols import native


def predict_router(predictor: Predictor, engine: EngineSpec, max_rows: int) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predict"])

    @router.post("/predict")
    async def predict(body: native.PredictBody) -> JSONResponse:
        """Answer one or many inputs, of one or many adapters, in order."""
        items = native.items_of(body, max_rows)
        prepared = await asyncio.to_thread(predictor.prepare, items)
        rows = [item.row for item in prepared if not isinstance(item, HeadstockError)]
        results = await engine.call(RunRows(rows)) if rows else []
        return native.answer(await asyncio.to_thread(predictor.finish, prepared, results))

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """Return the engine's counters; ``largest`` is the most mixed call of the backbone."""
        return asdict(await engine.call(ReadStats()))

    return router
