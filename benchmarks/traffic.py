"""Mixed requests over HTTP: as they come (open loop, Poisson arrivals) or all at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

PARAMETERS = {"truncate": True}  # a small backbone has no room for the longest texts
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of W3."""

    task: str
    adapter: str
    given: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """How long a request took from the moment it should have been sent, and whether it was answered."""

    task: str
    seconds: float
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """All answers of one stretch, and how long it lasted until the last of them."""

    answers: list[Answer]
    seconds: float


def send_open_loop(url: str, requests: Sequence[Request], rate: float, seed: int) -> Traffic:
    """Send requests at random moments, ``rate`` a second on average, whether or not others are answered."""
    generator = random.Random(seed)
    moments, now = [], 0.0
    for _ in requests:
        now += generator.expovariate(rate)
        moments.append(now)
    return asyncio.run(_send(url, requests, moments))


def send_at_once(url: str, requests: Sequence[Request]) -> Traffic:
    """Send all requests at the same moment."""
    return asyncio.run(_send(url, requests, [0.0] * len(requests)))


async def _send(url: str, requests: Sequence[Request], moments: Sequence[float]) -> Traffic:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits) as http:
        begin = time.perf_counter()
        answers = await asyncio.gather(
            *(
                _ask(http, request, begin + moment)
                for request, moment in zip(requests, moments, strict=True)
            )
        )
        return Traffic(list(answers), time.perf_counter() - begin)


async def _ask(http: httpx.AsyncClient, request: Request, due: float) -> Answer:
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    body = {"adapter": request.adapter, "inputs": [request.given], "parameters": PARAMETERS}
    try:
        response = await http.post("/v1/predict", json=body)
        is_ok = response.is_success and "error" not in response.json()["predictions"][0]
    except httpx.HTTPError:
        is_ok = False
    return Answer(request.task, time.perf_counter() - due, is_ok)
