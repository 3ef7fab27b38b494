"""Predictions, and what the engine has done so far."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from adapters.errors import DeadlineExceeded, HeadstockError, Unavailable
from adapters.runtime.stats import EngineStats
from service.access.callers import Who
from service.calls import Call, EngineCalls
from service.events import EventStream, prediction_events
from service.predictor import Predictor, Prepared, rows_of, with_earlier_usage
from service.protocols import native
from service.protocols.predictions import PredictAnswer
from service.settings import Settings
from service.threads import in_quick_thread, in_quick_turns
from service.wire import RowsDone

_LOOK_SECONDS = 0.25  # how often a waiting call looks whether its client is still there
T = TypeVar("T")


def predict_router(predictor: Predictor, calls: EngineCalls, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predict"])

    @router.post("/predict", responses={200: {"model": PredictAnswer}})
    async def predict(body: native.PredictBody, request: Request, who: Who) -> Response:
        """Answer one or many inputs, of one or many adapters, in order; or stream one generated answer."""
        items = native.items_of(body, settings.max_rows_per_call)
        seconds = body.timeout_seconds or settings.request_timeout_seconds
        deadline = time.monotonic() + seconds
        if body.stream:
            prepare = functools.partial(predictor.prepare_stream, items[0], deadline, who)
            call = calls.open()
            reading = in_time(deadline, in_quick_thread(prepare))
            return await _stream(predictor, call, request, reading)

        async def answers() -> list[dict[str, Any] | HeadstockError]:
            with calls.open() as call:
                reading = in_quick_turns(iter(predictor.prepare(items, deadline, who)))
                prepared = await in_time(deadline, reading)
                num_rows = len(rows_of(prepared))
                native.check_rows(num_rows, len(items), settings.max_rows_per_call)
                return await _answers(predictor, call, prepared)

        return await in_quick_thread(native.answer, await unless_gone(request, answers()))

    @router.get("/stats")
    async def stats() -> EngineStats:
        """Return the engine's counters; ``largest`` is the most mixed call of the backbone."""
        return await calls.stats()

    return router


async def _answers(
    predictor: Predictor,
    call: Call,
    prepared: Sequence[Prepared | HeadstockError],
) -> list[dict[str, Any] | HeadstockError]:
    """Return the items' answers, after as many rounds of the engine as they take."""
    rows = rows_of(prepared)
    results = await call.run(rows) if rows else []
    answers = await in_quick_thread(predictor.finish, prepared, results)
    again = await in_quick_thread(predictor.follow_ups, prepared, answers)
    if again:
        later = await _answers(predictor, call, list(again.values()))
        for i, answer in zip(again, later, strict=True):
            answers[i] = with_earlier_usage(answers[i], answer)
    return answers


async def _stream(
    predictor: Predictor,
    call: Call,
    request: Request,
    reading: Coroutine[Any, Any, Prepared],
) -> Response:
    """Return the events of one generated answer, or raise what is wrong before there is any."""
    try:
        prepared = await unless_gone(request, reading)
        call.send(prepared.rows)
        first = await unless_gone(request, call.next())
        if isinstance(first, RowsDone) and (error := first.results[0].error):
            raise error
    except BaseException:
        call.close()
        raise
    events = prediction_events(
        first,
        call,
        predictor.stream_text(prepared),
        lambda result: predictor.finish([prepared], [result])[0],
    )
    return EventStream(events, call)


async def in_time(deadline: float, reading: Coroutine[Any, Any, T]) -> T:
    """Await what reads a call's text, until the call's deadline."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded(
            "The text was not read in the time this request had. Raise timeout_seconds, or send less."
        ) from None


async def unless_gone(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """Await what a client waits for, and cancel it if the client goes away."""
    task = asyncio.create_task(waiting)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise Unavailable("The client has gone; nobody reads this.")
    finally:
        task.cancel()  # nothing happens if it is done
    return await task
