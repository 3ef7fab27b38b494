"""The one LitAPI, with its spec and its loop: how calls reach the engine's process and come back.

LitServe's own loops batch blindly and fail a whole batch for one row, so the loop is ours; everything here that
touches LitServe's undocumented parts (queues, response buffer) stays in this file.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

import litserve as ls
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem

from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import read_manifest
from adapters.errors import HeadstockError, InvalidBundle, Overloaded, PredictionFailed
from adapters.registry.blobs import BlobStore
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row, RowResult
from service.settings import Settings

logger = logging.getLogger(__name__)
API_PATH = "/engine"
_IDLE_SECONDS = 0.5
_LOAD_WAIT_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class RunRows:
    """Run these rows; the reply is a list of `RowResult` in their order."""

    rows: list[Row]


@dataclass(frozen=True, slots=True)
class ReadStats:
    """The reply is the engine's `EngineStats` (adapters.runtime.stats)."""


@dataclass(frozen=True, slots=True)
class CancelRows:
    """Forget these rows; nobody waits for them any more, and there is no reply."""

    row_ids: list[str]


Message = RunRows | ReadStats | CancelRows


class EngineSpec(LitSpec):
    """The API's side of the queue."""

    def __init__(self, max_waiting_calls: int) -> None:
        super().__init__()
        self._max_waiting_calls = max_waiting_calls
        self._event_loop: asyncio.AbstractEventLoop | None = None

    @property
    def stream(self) -> bool:
        return True  # the response pump then hands over whatever the loop sends, in order

    @property
    def num_waiting_calls(self) -> int:
        return len(self.response_buffer or ())

    def pre_setup(self, lit_api: ls.LitAPI) -> None:
        self.api_path = API_PATH

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        return output

    def __getstate__(self) -> dict[str, Any]:
        # Event loop and buffer hold asyncio objects, which can't go to the worker's process.
        return {**super().__getstate__(), "response_buffer": None, "_event_loop": None}

    async def call(self, message: RunRows | ReadStats) -> Any:
        """Send a message to the engine and return its reply.

        A call that is cancelled, as when its client has gone, takes its rows out of the engine.

        Raises:
            Overloaded: too many calls wait already.
        """
        if self.num_waiting_calls >= self._max_waiting_calls:
            raise Overloaded(
                f"'{self.num_waiting_calls}' calls are waiting, as many as this server takes. "
                "Try again after the time in Retry-After."
            )
        self._event_loop = asyncio.get_running_loop()
        uid = str(uuid.uuid4())
        item = ResponseBufferItem(event=asyncio.Event(), response_queue=deque())
        self.response_buffer[uid] = item
        try:
            await self._send(uid, message)
            await item.event.wait()
            reply, status = item.response_queue.popleft()
        except asyncio.CancelledError:
            if isinstance(message, RunRows):
                await asyncio.shield(self._send(uid, CancelRows([r.row_id for r in message.rows])))
            raise
        finally:
            self.response_buffer.pop(uid, None)
        if status == LitAPIStatus.ERROR:
            raise reply if isinstance(reply, HeadstockError) else PredictionFailed(str(reply))
        return reply

    async def _send(self, uid: str, message: Message) -> None:
        request = (self.response_queue_id, uid, time.monotonic(), message)
        await asyncio.to_thread(self.request_queue.put, request)

    def fail_waiting_calls(self, error: HeadstockError) -> None:
        """Answer every call in flight with an error; may be called from any thread."""
        for item in list((self.response_buffer or {}).values()):
            item.response_queue.append((error, LitAPIStatus.ERROR))
            if self._event_loop is not None:
                self._event_loop.call_soon_threadsafe(item.event.set)


class EngineApi(ls.LitAPI):
    """Loads the backbone once in the worker's process and owns the engine there."""

    def __init__(self, settings: Settings, backbone: BackboneSpec) -> None:
        super().__init__(
            api_path=API_PATH,
            spec=EngineSpec(settings.max_waiting_calls),
            loop=EngineLoop(),
            stream=True,
        )
        self._settings = settings
        self._backbone = backbone

    def setup(self, device: str) -> None:
        import torch

        die_with_parent()
        settings = self._settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        backbone = load_backbone(
            self._backbone, settings.dtype, home=settings.home, device=settings.device, fuse=True
        )
        blobs = BlobStore(settings.resolved_blob_url(), settings.bundle_cache())
        limits = EngineLimits(
            step_tokens=settings.step_tokens,
            max_running=settings.max_running,
            cache_bytes=settings.cache_bytes,
            bank_bytes=settings.bank_bytes,
        )
        self.engine = Engine(backbone, lambda digest: _fetch(blobs, digest), limits)

    def predict(self, x: Any) -> Any:
        raise NotImplementedError("the loop drives the engine")


def _fetch(blobs: BlobStore, digest: str) -> Path:
    """Return the folder of a bundle that says it is the one asked for; loading it checks that it is."""
    folder = blobs.fetch(digest)
    found = read_manifest(folder).digest
    if found != digest:
        raise InvalidBundle(f"The blob store gave bundle '{found[:12]}…' for '{digest[:12]}…'.")
    return folder


@dataclass(slots=True)
class _Call:
    """A call in the engine: where its reply goes, and its rows' results so far, in the rows' order."""

    uid: str
    response_queue_id: int
    results: dict[str, RowResult | None]


class EngineLoop(LitLoop):
    """Takes calls off the queue, steps the engine, and replies once all rows of a call are finished."""

    def __call__(
        self,
        lit_api: EngineApi,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        engine = lit_api.engine
        calls: dict[str, _Call] = {}  # by row id
        while True:
            for queue_id, uid, _, message in _drain(request_queue, block=not engine.num_rows):
                if isinstance(message, ReadStats):
                    stats = replace(engine.stats, waiting_rows=engine.num_rows)
                    self._reply(transport, queue_id, uid, stats)
                    continue
                if isinstance(message, CancelRows):
                    for row_id in message.row_ids:
                        engine.cancel(row_id)
                        calls.pop(row_id, None)
                    continue
                call = _Call(uid, queue_id, {row.row_id: None for row in message.rows})
                calls.update((row.row_id, call) for row in message.rows)
                self._settle(transport, calls, _submit(engine, message.rows))
            self._settle(transport, calls, _step(engine))
            engine.wait_for_loads(_LOAD_WAIT_SECONDS)

    def _settle(
        self, transport: Any, calls: dict[str, _Call], results: Sequence[RowResult]
    ) -> None:
        for result in results:
            call = calls.pop(result.row_id, None)
            if call is None:
                continue  # cancelled while it was in the last step
            call.results[result.row_id] = result
            if None not in call.results.values():
                self._reply(
                    transport, call.response_queue_id, call.uid, list(call.results.values())
                )

    def _reply(self, transport: Any, queue_id: int, uid: str, data: Any) -> None:
        self.put_response(
            transport, queue_id, uid, data, LitAPIStatus.OK, LoopResponseType.STREAMING
        )


def _step(engine: Engine) -> list[RowResult]:
    """Step the engine; what should never happen ends the rows that are in it, not the server."""
    try:
        return engine.step()
    except Exception as error:
        logger.exception("The engine failed; its rows are answered with an error")
        return engine.abort(error)


def _submit(engine: Engine, rows: Sequence[Row]) -> list[RowResult]:
    """Submit rows; return those refused at once, as results."""
    refused = []
    for row in rows:
        try:
            engine.submit(row)
        except HeadstockError as error:
            refused.append(RowResult(row.row_id, error=error))
    return refused


def _drain(request_queue: Any, *, block: bool) -> list[Any]:
    """Return the calls that wait; if there is nothing to compute, wait a moment for the first."""
    items = []
    try:
        if block:
            items.append(request_queue.get(timeout=_IDLE_SECONDS))
        while True:
            items.append(request_queue.get_nowait())
    except Empty:
        return items


def die_with_parent() -> None:
    """End this process when the server's process ends, however that ends; LitServe leaves orphans otherwise."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
