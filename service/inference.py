"""The one LitAPI, with its spec and its loop: what LitServe starts in the engine's process.

LitServe's own loops batch blindly and fail a whole batch for one row, and its queues cost a process and a quarter of a
millisecond a call, so loop and wire are ours.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litserve as ls
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import read_manifest
from adapters.device import find_device
from adapters.errors import InvalidBundle
from adapters.imports import many_imports
from adapters.registry.blobs import BlobStore
from adapters.runtime.limits import EngineLimits
from adapters.runtime.onednn import bound_caches
from adapters.tokenizer import load_tokenizer
from service.calls import EngineCalls
from service.lifeline import live_and_die_with_parent
from service.memory import fit_limits, memory_room
from service.settings import Settings
from service.wire import Wire

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine

API_PATH = "/engine"


class NoRoutes(LitSpec):
    """A spec without routes of its own: ours are routers on the server's app."""

    @property
    def stream(self) -> bool:
        return True

    def pre_setup(self, lit_api: ls.LitAPI) -> None:
        self.api_path = API_PATH

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        return output


class EngineApi(ls.LitAPI):
    """Loads the backbone once in the worker's process and owns the engine there.

    Args:
        calls: tells the server's health; stays in the server's process.
    """

    wire: Wire | None = None  # the worker's end, set anew for each process

    def __init__(self, settings: Settings, backbone: BackboneSpec, calls: EngineCalls) -> None:
        super().__init__(api_path=API_PATH, spec=NoRoutes(), loop=EngineLoop(), stream=True)
        self._settings = settings
        self._backbone = backbone
        self._calls: EngineCalls | None = calls

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calls": None}

    def health(self) -> bool:
        return self._calls is not None and self._calls.is_ready

    def setup(self, device: str) -> None:
        live_and_die_with_parent()
        bound_caches()
        # A bar's lock would be told as leaked when this process ends at once.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with many_imports():
            self.engine = self._build_engine()

    def _build_engine(self) -> Engine:
        # Imported where the engine is: the server's own process has no use for torch and its 200 MB.
        import torch

        from adapters.runtime.engine import Engine

        settings = self._settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = find_device(settings.device)
        backbone = load_backbone(
            self._backbone, settings.dtype, home=settings.home, device=device, fuse=True
        )
        blobs = BlobStore(
            settings.resolved_blob_url(), settings.bundle_cache(), settings.cache_disk_bytes
        )
        return Engine(
            backbone,
            lambda digest: _fetch(blobs, digest),
            _limits(settings, backbone),
            decode=_decoder(self._backbone),
        )

    def predict(self, x: Any) -> Any:
        raise NotImplementedError("the loop drives the engine")


class EngineLoop(LitLoop):
    """Hands the engine's process over to `Worker` until the server is gone."""

    def __call__(self, lit_api: EngineApi, *_: Any) -> None:
        from service.worker import Worker

        assert lit_api.wire is not None
        Worker(lit_api.engine, lit_api.wire).run()
        os._exit(0)  # at once: the usual way out waits for a bundle that is still being read


def _decoder(backbone: BackboneSpec) -> Callable[[Sequence[int]], str]:
    """Return what gives token ids' text. Few rows have stop strings: the tokenizer's 45 MB wait for the first."""
    load = functools.cache(lambda: load_tokenizer(backbone.folder, backbone.tokenizer))
    return lambda token_ids: load().decode(token_ids)


def _limits(settings: Settings, backbone: Backbone) -> EngineLimits:
    """Return the engine's bounds; on a CPU, where all share one memory, as far as there is memory for them."""
    limits, room = limits_of(settings, backbone.device.type), memory_room()
    if room is None or backbone.device.type != "cpu":
        return limits
    from adapters.runtime.families import past_bytes

    vocabulary, itemsize = int(backbone.config.vocab_size), backbone.dtype.itemsize
    longest = min(settings.max_row_tokens, backbone.spec.max_tokens)
    past = past_bytes(backbone, longest)
    return fit_limits(limits, room, backbone.spec, vocabulary, itemsize, past)


def limits_of(settings: Settings, device_type: str) -> EngineLimits:
    """Return the engine's bounds; the settings have the same names."""
    names = [field.name for field in dataclasses.fields(EngineLimits)]
    return EngineLimits.for_device(device_type, **{name: getattr(settings, name) for name in names})


def _fetch(blobs: BlobStore, digest: str) -> Path:
    """Return the folder of a bundle that says it is the one asked for; loading it checks that it is."""
    folder = blobs.fetch(digest)
    found = read_manifest(folder).digest
    if found != digest:
        raise InvalidBundle(f"The blob store gave bundle '{found[:12]}…' for '{digest[:12]}…'.")
    return folder
