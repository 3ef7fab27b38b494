"""Builds and runs the server: one LitServer with one engine, and our routers on its app."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.managers import SyncManager
from typing import Any
from unittest import mock

import litserve as ls

from adapters.backbone import backbone_name, describe_backbone, find_backbone
from adapters.errors import EnvironmentProblem, Unavailable
from adapters.tokenizer import load_tokenizer
from service.errors import add_error_handlers
from service.inference import EngineApi, EngineSpec, die_with_parent
from service.limits import Gatekeeper
from service.opening import open_registry
from service.predictor import Predictor
from service.routes.adapters import adapters_router
from service.routes.predict import predict_router
from service.settings import Settings

logger = logging.getLogger(__name__)
_LAST_ANSWERS_SECONDS = 0.5  # what the API thread gets to send the errors out


class Server(ls.LitServer):
    """A LitServer that ends, calls in flight answered, when its engine's process is gone.

    LitServe's own monitor would shut the manager down under the main thread and leave the API thread running.
    """

    is_stopping = False

    def _init_manager(self, num_api_servers: int) -> Any:
        """As LitServe's, but the manager's process ends with this one: it holds the listening socket."""
        with mock.patch("litserve.server.mp.Manager", _start_manager):
            return super()._init_manager(num_api_servers)

    def launch_inference_worker(self, lit_api: ls.LitAPI) -> list[Any]:
        self._monitor_workers = False
        workers: list[Any] = super().launch_inference_worker(lit_api)
        threading.Thread(target=self._watch, args=(workers, lit_api.spec), daemon=True).start()
        return workers

    def _watch(self, workers: list[Any], spec: EngineSpec) -> None:
        multiprocessing.connection.wait([worker.sentinel for worker in workers])
        if self.is_stopping:
            return
        codes = ", ".join(str(worker.exitcode) for worker in workers)
        logger.error("The engine's process ended (exit code %s); the server ends too.", codes)
        spec.fail_waiting_calls(
            Unavailable(
                "The engine's process ended while it worked on this. Send the request again."
            )
        )
        time.sleep(_LAST_ANSWERS_SECONDS)
        os._exit(1)


def _start_manager() -> SyncManager:
    manager = SyncManager(ctx=multiprocessing.get_context())
    manager.start(initializer=die_with_parent)
    return manager


def build_server(settings: Settings) -> Server:
    """Return a server ready to run.

    Raises:
        EnvironmentProblem: home can't be written, or the backbone can't be had.
        UnsupportedBackbone: the backbone can't be served.
    """
    registry = open_registry(settings)
    folder = find_backbone(settings.backbone, settings.home)
    backbone = describe_backbone(folder, backbone_name(settings.backbone))
    registry.add_backbone(backbone)
    api = EngineApi(settings, backbone)
    server = Server(
        api,
        accelerator="cpu",  # the engine picks its device itself, by settings.device
        timeout=False,
        restart_workers=False,
    )
    predictor = Predictor(registry, load_tokenizer(folder), backbone, settings.max_row_tokens)
    server.app.title = "Headstock"
    server.app.include_router(predict_router(predictor, api.spec, settings.max_rows_per_call))
    server.app.include_router(adapters_router(registry, settings.max_bundle_bytes))
    add_error_handlers(server.app)
    server.app.add_middleware(Gatekeeper, max_body_bytes=settings.max_body_bytes)
    return server


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then end this process.

    Raises:
        EnvironmentProblem: the port is in use.
    """
    check_port(settings.host, settings.port)
    server = build_server(settings)
    _stop_on_signals(server, settings.drain_seconds)
    try:
        server.run(
            host=settings.host,
            port=settings.port,
            num_api_servers=1,
            # A thread: LitServe otherwise forks, and a fork after torch has run threads can hang.
            api_server_worker_type="thread",
            generate_client_file=False,
            log_level="warning",
        )
    except RuntimeError as error:  # what LitServe raises when the worker's setup failed
        raise EnvironmentProblem(
            "The engine did not start; the lines above tell why. Check --dtype, --device and memory."
        ) from error
    # The API thread is not LitServe's to end (it calls terminate(), which threads don't have).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def check_port(host: str, port: int) -> None:
    """Raise `EnvironmentProblem` if nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EnvironmentProblem(
                f"Can't listen on {host}:{port}: {error.strerror}. Choose another --port, or stop what "
                "listens there."
            ) from error


def _stop_on_signals(server: Server, drain_seconds: float) -> None:
    def drain() -> None:
        server.is_stopping = True
        deadline = time.monotonic() + drain_seconds
        spec = server.lit_api.spec
        while spec.num_waiting_calls and time.monotonic() < deadline:
            time.sleep(0.05)
        # It is about to complain that it can't end our API thread; the process ends right after.
        logging.getLogger("litserve").setLevel(logging.CRITICAL)
        server._shutdown_event.set()

    def stop(*_: object) -> None:
        # On a thread: the main one is inside a call to the manager, which can't be called again from here.
        threading.Thread(target=drain, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
