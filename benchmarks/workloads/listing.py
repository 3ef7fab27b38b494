"""R2: one page of a registry with very many versions, by the registry itself and by its HTTP routes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
from fastapi import FastAPI

from adapters.bundle import Lineage, Manifest, read_manifest
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from benchmarks.bundles import Lora, classifier
from benchmarks.report import Measurement, measure
from benchmarks.rounds import run_rounds
from benchmarks.session import Session
from benchmarks.workloads.versions import LONG, NUM_EACH, fill_versions, name_of
from service.jobs.queue import JobQueue
from service.routes.adapters import adapters_router
from service.settings import load_settings
from service.submissions import Submissions

NUM_VERSIONS = 100_000
ADAPTERS_PAGE, VERSIONS_PAGE = 1000, 100  # what the routes give if no limit is asked for
_SMALL_PAGE = 100
_NUM_LABELS = 77
_NUM_CALLS = 20  # whose median a run is


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is asked for.

    Args:
        adapters: how many the list, or the table, holds.
        path: of the route; ``call`` is what that asks the registry for: one row more, which tells whether to go on.
        rows: what the route gives: names of adapters, or numbers of versions.
    """

    workload: str
    adapters: int
    kind: Literal["adapters", "versions"]
    path: str
    call: Callable[[Registry], list[Any]]
    rows: list[Any]


class _Lister(Protocol):
    def fetch(self, page: Page) -> list[Any]:
        """Return a page's rows as `Page.rows` has them."""

    def milliseconds(self, page: Page, num_calls: int) -> float:
        """Return the median time of some calls, one after the other."""


def run_listing(session: Session, urls: Mapping[str, str]) -> list[Measurement]:
    """Return times of pages at the beginning, in the middle and at the end of what is listed."""
    num_versions = session.options.full_or_quick(NUM_VERSIONS, 200)
    listers: dict[str, _Lister] = {}
    databases = [Database(url) for url in urls.values()]
    for name, database in zip(urls, databases, strict=True):
        begin = time.monotonic()
        fill_versions(database, _manifest(session), num_versions)
        session.say(f"  {name} filled in {time.monotonic() - begin:.0f} s")
        registry = Registry(database, BlobStore(str(session.scratch / "blobs"), session.scratch))
        routed = _Routed(registry, JobQueue(database))
        listers |= {f"{name}, registry": _Direct(registry), f"{name}, HTTP": routed}
    measured = [_time(session, page, listers) for page in pages(num_versions)]
    for database in databases:
        database.close()
    return [row for rows in measured for row in rows]


def pages(num_versions: int) -> Iterator[Page]:
    """Yield pages of what `fill_versions` made: of all adapters, then of one adapter's versions."""
    count = num_versions // NUM_EACH + 1
    for where, first in _places(count, ADAPTERS_PAGE).items():
        yield _adapters(f"R2 adapters, {where} {ADAPTERS_PAGE}", count, first, ADAPTERS_PAGE)
    yield _adapters(f"R2 adapters, middle {_SMALL_PAGE}", count, count // 2, _SMALL_PAGE)
    for where, first in _places(num_versions, VERSIONS_PAGE).items():
        yield _versions(f"R2 versions, {where} {VERSIONS_PAGE}", LONG, num_versions - first)
    yield _versions(f"R2 versions of one of {count:,}", name_of(count // 2), NUM_EACH, count)
    yield _whole_adapter("R2 an adapter with its newest versions", num_versions)


def _places(count: int, limit: int) -> dict[str, int]:
    """Return how many rows come before each page."""
    return {"first": 0, "middle": count // 2, "last": max(0, count - limit)}


def _adapters(workload: str, count: int, first: int, limit: int) -> Page:
    after = name_of(first - 1) if first else ""
    names = [*(name_of(i) for i in range(count - 1)), LONG]
    return Page(
        workload,
        count,
        "adapters",
        f"/v1/adapters?limit={limit}&after={after}",
        lambda registry: registry.list_adapters(after=after, limit=limit + 1)[:limit],
        names[first : first + limit],
    )


def _versions(workload: str, name: str, newest: int, adapters: int = 1) -> Page:
    """Return the page that begins with a version and goes on to older ones."""
    limit = VERSIONS_PAGE
    return Page(
        workload,
        adapters,
        "versions",
        f"/v1/adapters/{name}/versions?limit={limit}&before={newest + 1}",
        lambda registry: registry.list_versions(name, before=newest + 1, limit=limit + 1)[-limit:],
        list(range(max(1, newest - limit + 1), newest + 1)),
    )


def _whole_adapter(workload: str, newest: int) -> Page:
    def call(registry: Registry) -> list[Any]:
        registry.get_adapter(LONG)
        return registry.list_versions(LONG, limit=VERSIONS_PAGE + 1)[-VERSIONS_PAGE:]

    page = _versions(workload, LONG, newest)
    return replace(page, path=f"/v1/adapters/{LONG}", call=call)


class _Direct:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def fetch(self, page: Page) -> list[Any]:
        key = "name" if page.kind == "adapters" else "number"
        return [getattr(row, key) for row in page.call(self._registry)]

    def milliseconds(self, page: Page, num_calls: int) -> float:
        times = []
        for _ in range(num_calls):
            begin = time.perf_counter()
            page.call(self._registry)
            times.append((time.perf_counter() - begin) * 1000)
        return statistics.median(times)


class _Routed:
    """The server's own routes, called in this process: no socket between, and nobody else's calls."""

    def __init__(self, registry: Registry, queue: JobQueue) -> None:
        submissions = Submissions(registry, queue, load_settings())
        self._app = FastAPI()
        self._app.include_router(adapters_router(registry, submissions))

    def fetch(self, page: Page) -> list[Any]:
        response, _ = asyncio.run(self._ask(page, 1))
        key = "name" if page.kind == "adapters" else "version"
        return [row[key] for row in response.json()[page.kind]]

    def milliseconds(self, page: Page, num_calls: int) -> float:
        _, times = asyncio.run(self._ask(page, num_calls))
        return statistics.median(times)

    async def _ask(self, page: Page, num_calls: int) -> tuple[httpx.Response, list[float]]:
        transport, times = httpx.ASGITransport(self._app), []
        async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
            for _ in range(num_calls):
                begin = time.perf_counter()
                response = await client.get(page.path)
                times.append((time.perf_counter() - begin) * 1000)
        return response.raise_for_status(), times


def _time(session: Session, page: Page, listers: Mapping[str, _Lister]) -> list[Measurement]:
    for name, lister in listers.items():
        if lister.fetch(page) != page.rows:
            raise RuntimeError(f"{name} gives other rows than there are, as {page.workload}")
    num_calls = session.options.full_or_quick(_NUM_CALLS, 1)

    def run(name: str, _: int) -> float:
        return listers[name].milliseconds(page, num_calls)

    runs = run_rounds({name: partial(run, name) for name in listers}, session.options.runs)
    return [measure(page.workload, name, page.adapters, "ms", runs[name]) for name in listers]


def _manifest(session: Session) -> Manifest:
    """Return a manifest as long as those that training writes."""
    task = {"listed": classifier(_NUM_LABELS)}
    folder = session.adapters(session.decoder, "r2", task, Lora(rank=1))["listed"]
    scores = {"accuracy": 0.8432, "macro_f1": 0.8391, "mcc": 0.8317, "ece": 0.0412}
    digest = "0" * 64
    lineage = Lineage(
        data={"train": digest, "validation": digest, "test": digest},
        seed=1,
        dtype="bfloat16",
        libraries={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        created_at="2026-11-27T12:00:00+00:00",
    )
    changes = {"metrics": {"before": scores, "after": scores}, "lineage": lineage}
    return read_manifest(Path(folder)).model_copy(update=changes)
