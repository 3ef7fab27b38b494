"""What ``POST /v1/adapters`` sends: a bundle in the body, or where it is: a URL, or a job that made it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ConfigDict, Field, ValidationError, model_validator

from adapters.errors import Conflict, InvalidRequest, TooLarge
from adapters.reference import check_name
from adapters.registry.notes import check_note
from adapters.registry.registry import Registry
from adapters.validation import first_problem
from service.access.callers import Caller
from service.archives import unpack
from service.bodies import Body
from service.errors import unreadable
from service.jobs.queue import JobQueue
from service.jobs.states import Status
from service.settings import Settings
from service.sources import fetch_source
from service.threads import in_slow_thread
from service.uploads import is_json, receive

_MOST_JSON = 2**16


class Target(Body):
    """What a version is to be called: from the URL or, in a form, its fields."""

    model_config = ConfigDict(extra="forbid")

    name: str
    note: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    backbone: str | None = None


class Source(Target):
    """A bundle that the server gets by itself."""

    url: str | None = None
    job: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Source:
        if (self.url is None) == (self.job is None):
            raise ValueError("name either a 'url' or a 'job'")
        return self


TargetType = TypeVar("TargetType", bound=Target)


class Submissions:
    """Takes bundles in, into folders of their own until they are registered."""

    def __init__(self, registry: Registry, queue: JobQueue, settings: Settings) -> None:
        self._registry = registry
        self._queue = queue
        self._trusted = settings.trusted_urls()
        self._most = settings.max_bundle_bytes

    @asynccontextmanager
    async def receive(
        self, request: Request, given: dict[str, str], who: Caller
    ) -> AsyncIterator[tuple[Target, Path]]:
        """Give what was asked for, and the folder of files to register, which may be no bundle yet.

        Args:
            given: in the URL; it counts before what the body says.

        Raises:
            InvalidRequest, TooLarge, NotFound, Conflict: it can't be had.
        """
        with tempfile.TemporaryDirectory(prefix="headstock-upload-") as scratch:
            if is_json(request.headers):
                source = _check(Source, {**await _read_json(request), **given})
                yield source, await in_slow_thread(self._get, source, Path(scratch), who)
            else:
                archive, folder = Path(scratch) / "archive", Path(scratch) / "bundle"
                fields = await receive(request.headers, request.stream(), archive, self._most)
                target = _check(Target, {**fields, **given})
                folder.mkdir()
                await in_slow_thread(unpack, archive, folder, self._most)
                yield target, folder

    def _get(self, source: Source, scratch: Path, who: Caller) -> Path:
        if source.job is not None:
            return self._made_by(source.job, who)
        assert source.url is not None
        fetch_source(source.url, self._trusted, scratch, self._most)
        return scratch

    def _made_by(self, job: str, who: Caller) -> Path:
        """Return the bundle of a finished job's adapter."""
        found = self._queue.get(job, who.namespace)
        if found.status != Status.SUCCEEDED or found.fine_tuned_model is None:
            raise Conflict(
                f"Job '{job}' is '{found.status}' and has made no adapter. Name one that has succeeded.",
                param="job",
            )
        version = self._registry.resolve(who.reference(found.fine_tuned_model))
        return self._registry.fetch(version)


async def _read_json(request: Request) -> dict[str, Any]:
    """Return the object in a body, which is read no further than one may be long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON:
            raise TooLarge(f"A JSON body of more than '{_MOST_JSON}' bytes is not taken here.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    if not isinstance(fields, dict):
        raise InvalidRequest('The body must be an object: {"name": …, "url": …}.')
    return fields


def _check(model: type[TargetType], fields: dict[str, Any]) -> TargetType:
    try:
        target = model.model_validate(fields)
    except ValidationError as error:
        message, param = first_problem(error)
        raise InvalidRequest(f"Of the upload, {message}", param=param) from error
    check_name(target.name, what="adapter name")
    check_note(target.note)
    return target
