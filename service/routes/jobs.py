"""OpenAI's ``/v1/fine_tuning/jobs``: orders, what became of them, and their events as pages or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from adapters.errors import InvalidRequest
from service.access.callers import Who
from service.jobs.estimates import Estimates
from service.jobs.intake import Intake
from service.jobs.orders import JobOrder
from service.jobs.queue import JobQueue, new_job_id
from service.jobs.states import ENDED
from service.memory import memory_room
from service.protocols.fine_tuning import (
    CheckpointAnswer,
    EstimateAnswer,
    EventAnswer,
    JobAnswer,
    Page,
    checkpoint_answers,
    estimate_answer,
    event_answer,
    event_number,
    job_answer,
    page,
)
from service.routes.predict import unless_gone
from service.settings import Settings

_LOOK_SECONDS = 0.5
_EVENTS_A_LOOK = 500
_MOST_KEY = 128
Limit = Annotated[int, Query(ge=1, le=1000)]
IdempotencyKey = Annotated[str | None, Header(max_length=_MOST_KEY, min_length=1)]


def jobs_router(
    queue: JobQueue,
    intake: Intake,
    estimates: Estimates,
    settings: Settings,
    is_draining: Callable[[], bool],
    call_workers: Callable[[], None],
) -> APIRouter:
    """Return the routes.

    Args:
        call_workers: has workers there, if this server is to start them.
    """
    router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @router.post("")
    async def create_job(
        order: JobOrder, who: Who, idempotency_key: IdempotencyKey = None
    ) -> JobAnswer:
        """Order an adapter; what can't be done is refused now. The same Idempotency-Key gives the same job."""
        if idempotency_key is not None:
            # Before the order is checked: what it needs may be gone by now.
            known = await asyncio.to_thread(queue.made_by, order, idempotency_key, who.namespace)
            if known is not None:
                return job_answer(known)
        call_workers()
        job = new_job_id()
        plan = await intake.plan(order, job, who)
        made = await asyncio.to_thread(
            queue.submit,
            order,
            plan,
            job=job,
            namespace=who.namespace,
            idempotency_key=idempotency_key,
            most_active=settings.max_active_jobs,
            key=who.key,
            most_of_key=who.max_jobs,
        )
        return job_answer(made)

    @router.post("/estimate")
    async def estimate_job(order: JobOrder, request: Request, who: Who) -> EstimateAnswer:
        """Measure a few steps of what an order would train; tells time and memory as bands."""
        plan = await intake.plan(order, new_job_id(), who)
        measuring = estimates.measure(order, plan, who.namespace)
        estimate = await unless_gone(request, measuring)
        # Of a GPU's memory nothing is known here.
        room = None if order.resources.gpus else memory_room()
        return estimate_answer(plan, estimate, room)

    @router.get("")
    async def list_jobs(
        request: Request, who: Who, after: str | None = None, limit: Limit = 20
    ) -> Page[JobAnswer]:
        """List jobs, newest first; ``metadata[key]=value`` picks those that have it."""
        metadata = {
            name[len("metadata[") : -1]: value
            for name, value in request.query_params.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = await asyncio.to_thread(
            queue.list_jobs,
            after=after,
            limit=limit + 1,
            metadata=metadata,
            namespace=who.namespace,
        )
        return page([job_answer(job) for job in found[:limit]], has_more=len(found) > limit)

    @router.get("/{job}")
    async def get_job(job: str, who: Who) -> JobAnswer:
        return job_answer(await asyncio.to_thread(queue.get, job, who.namespace))

    @router.post("/{job}/cancel")
    async def cancel_job(job: str, who: Who) -> JobAnswer:
        return job_answer(await asyncio.to_thread(queue.cancel, job, who.namespace))

    @router.post("/{job}/pause")
    async def pause_job(job: str, who: Who) -> JobAnswer:
        return job_answer(await asyncio.to_thread(queue.pause, job, who.namespace))

    @router.post("/{job}/resume")
    async def resume_job(job: str, who: Who) -> JobAnswer:
        call_workers()
        return job_answer(await asyncio.to_thread(queue.resume, job, who.namespace))

    @router.get("/{job}/checkpoints")
    async def list_checkpoints(job: str, who: Who) -> Page[CheckpointAnswer]:
        found = await asyncio.to_thread(queue.get, job, who.namespace)
        return page(checkpoint_answers(found), has_more=False)

    @router.get("/{job}/events", response_model=Page[EventAnswer])
    async def list_events(
        job: str,
        who: Who,
        after: str | None = None,
        limit: Limit = 20,
        stream: bool = False,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Page[EventAnswer] | StreamingResponse:
        """List events, newest first; with ``stream=true`` send them as they come, until the job has ended."""
        await asyncio.to_thread(queue.get, job, who.namespace)
        if stream:
            begin = _number(last_event_id or after or "0", "Last-Event-ID")
            return StreamingResponse(
                _events(queue, job, begin, is_draining), media_type="text/event-stream"
            )
        before = None if after is None else _number(after, "after")
        found = await asyncio.to_thread(queue.list_events, job, before=before, limit=limit + 1)
        bodies = [event_answer(event) for event in reversed(found[-limit:])]
        return page(bodies, has_more=len(found) > limit)

    return router


def _number(text: str, param: str) -> int:
    number = event_number(text)
    if number is None:
        raise InvalidRequest(f"'{text[:60]}' is no event's id, such as 'ftevent-12'.", param=param)
    return number


async def _events(
    queue: JobQueue, job: str, after: int, is_draining: Callable[[], bool]
) -> AsyncIterator[str]:
    """Yield a job's events behind a number as server-sent events, until it has ended and all are told."""
    while not is_draining():
        # First: what is told between the two looks comes with the next one.
        has_ended = (await asyncio.to_thread(queue.get, job, None)).status in ENDED
        events = await asyncio.to_thread(queue.list_events, job, after=after, limit=_EVENTS_A_LOOK)
        for event in events:
            after = event.number
            body = json.dumps(event_answer(event), ensure_ascii=False)
            yield f"id: {event.number}\nevent: fine_tuning.job.event\ndata: {body}\n\n"
        if has_ended and not events:
            yield "event: done\ndata: [DONE]\n\n"
            return
        if not events:
            yield ": still here\n\n"  # so that a client that is gone is noticed
            await asyncio.sleep(_LOOK_SECONDS)
