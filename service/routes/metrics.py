"""``GET /metrics``: what the engine and the queue of jobs count, in Prometheus's form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from adapters.errors import Unavailable
from adapters.runtime.stats import EngineStats
from service.calls import EngineCalls
from service.jobs.queue import JobQueue
from service.limits import Traffic

_COUNTERS = {
    "steps": "Calls of the backbone.",
    "rows": "Rows in these calls; one that generates counts once a step.",
    "tokens": "Tokens in these calls.",
    "prefix_hit_tokens": "Prompt tokens that were not computed again.",
}


class _Counts(Collector):
    """One look at the server; counters begin anew with each engine process, as Prometheus expects."""

    def __init__(
        self, engine: EngineStats | None, jobs: Mapping[str, int] | None, num_requests: int
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._num_requests = num_requests

    def collect(self) -> Iterator[Any]:
        yield _gauge("requests", "HTTP requests that are being answered.", self._num_requests)
        yield _gauge("engine_up", "Whether the engine answers.", self._engine is not None)
        if self._engine is not None:
            yield from _of_engine(self._engine)
        if self._jobs is not None:
            family = GaugeMetricFamily("headstock_jobs", "Training jobs.", labels=["status"])
            for status, count in self._jobs.items():
                family.add_metric([status], count)
            yield family


def metrics_router(calls: EngineCalls, queue: JobQueue, traffic: Traffic) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return all numbers; without the engine's or the jobs' if these can't be had."""
        registry = CollectorRegistry()
        registry.register(_Counts(await _stats(calls), await _jobs(queue), traffic.num_requests))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _stats(calls: EngineCalls) -> EngineStats | None:
    if not calls.is_ready:
        return None
    try:
        return await calls.stats()
    except Unavailable:
        return None


async def _jobs(queue: JobQueue) -> dict[str, int] | None:
    try:
        return await asyncio.to_thread(queue.count)
    except Unavailable:
        return None


def _of_engine(stats: EngineStats) -> Iterator[Any]:
    for name, told in _COUNTERS.items():
        yield CounterMetricFamily(f"headstock_engine_{name}", told, value=getattr(stats, name))
    yield _gauge("waiting_rows", "Rows submitted and not yet finished.", stats.waiting_rows)
    yield _gauge("resident_adapters", "Adapters on the device.", len(stats.resident_adapters))
    yield _gauge("bank_bytes", "Bytes of their weights.", stats.bank_bytes)


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headstock_{name}", told, value=float(value))
