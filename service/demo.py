"""The main job from end to end on real text: train three adapters, serve them together, swap one under load."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adapters.errors import EnvironmentProblem, HeadstockError
from service.client import Client
from service.demo_adapters import DATA, DemoAdapter, demo_adapters, inputs_of
from service.demo_traffic import BurstResult, SwapResult, send_burst, swap_version
from service.opening import open_registry
from service.runs import RunProgress, execute_run, last_line, quiet_environment
from service.settings import Settings, make_folder, prepare_home
from training.contract import BUNDLE_NAME, RunConfig, RunResult

START_SECONDS = 120.0
_LIBRARIES = ("headstock", "torch", "transformers", "peft", "litserve")


@dataclass(slots=True)
class Report:
    """What goes into ``report.json``; ``checks`` must all hold for ``ok``."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, Any] = field(default_factory=dict)
    hot_swap: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.error is None and bool(self.checks) and all(self.checks.values())

    def body(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        return {
            "ok": self.is_ok,
            **asdict(self),
            "versions": {"python": platform.python_version(), **versions},
        }


def run_demo(settings: Settings, out: Path) -> bool:
    """Run the demo, print one table, write ``report.json`` into ``out``, and tell whether all of it held."""
    console = Console(stderr=True)
    report = Report()
    prepare_home(settings.home)
    make_folder(out)
    try:
        Demo(settings, out, console, report).run()
    except HeadstockError as error:
        report.error = error.message
        console.print(f"[red]Error:[/] {error.message}", highlight=False)
    except BaseException as error:
        report.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        (out / "report.json").write_text(json.dumps(report.body(), indent=2) + "\n")
    _print_report(Console(width=None if sys.stdout.isatty() else 110), report, out)
    return report.is_ok


class Demo:
    """The demo in progress. Its registry lies in its own folder, so that it can be repeated."""

    def __init__(self, settings: Settings, out: Path, console: Console, report: Report) -> None:
        self._out = out
        self._console = console
        self._report = report
        registry = out.resolve() / "registry"
        self._settings = settings.model_copy(
            update={
                "database_url": f"sqlite:///{registry / 'registry.db'}",
                "blob_url": str(registry / "blobs"),
                "port": free_port(),
            }
        )
        self._url = f"http://127.0.0.1:{self._settings.port}"

    def run(self) -> None:
        if not DATA.is_dir():
            raise EnvironmentProblem(
                f"No folder '{DATA}'. Run the demo from a clone of the repository."
            )
        for folder in ("runs", "registry"):
            shutil.rmtree(self._out / folder, ignore_errors=True)
        (self._out / "registry").mkdir(parents=True)
        begin = time.monotonic()
        with self._stage("prepare", "Preparing the backbone (once)"):
            self._command("backbone", "prepare", expected_seconds=25)
        adapters = demo_adapters(self._settings.backbone)
        for adapter in adapters:
            with self._stage(f"train {adapter.name}", f"{adapter.name}: {adapter.note}"):
                self._train(adapter)
        with self._stage("train sentiment again", "sentiment: a second version, from more reviews"):
            self._train_second(adapters[0])
        with self._stage("register", "Registering the three adapters"):
            self._register(adapters)
        with self._serving():
            with self._stage("burst", "A burst of requests that mixes all three tasks"):
                self._burst(adapters)
            with self._stage("hot swap", "A new version of sentiment while requests run"):
                self._swap(adapters[0])
        self._report.seconds["total"] = round(time.monotonic() - begin, 1)

    def _run_folder(self, name: str) -> Path:
        return self._out.resolve() / "runs" / name

    def _train(self, adapter: DemoAdapter) -> None:
        result = self._execute(adapter.config, adapter.name)
        before = result.metrics["before"][result.primary_metric]
        after = result.metrics["after"][result.primary_metric]
        baselines = {
            name: round(values[result.primary_metric], 4)
            for name, values in result.metrics.items()
            if name not in ("before", "after")
        }
        self._report.tasks[adapter.name] = {
            "task": result.task,
            "metric": result.primary_metric,
            "before": round(before, 4),
            "after": round(after, 4),
            "majority": baselines.get("majority"),
            "lead_1": baselines.get("lead_1"),
            "test_rows": result.num_test_rows,
            "train_rows": result.num_train_rows,
        }
        wanted = max(adapter.min_after, before + adapter.min_gain)
        self._report.checks[f"{adapter.name} learned ({wanted:.2f} wanted)"] = after >= wanted

    def _train_second(self, adapter: DemoAdapter) -> None:
        config = adapter.config.model_copy(deep=True)
        config.data.train = str(DATA / "sentence_polarity" / "more.jsonl")
        config.data.max_test_rows = 200
        config.parent = str(self._run_folder(adapter.name) / BUNDLE_NAME)
        config.evaluate_untrained = False
        config.fit.max_tokens = 8_000
        config.fit.learning_rate = 5e-4
        self._execute(config, f"{adapter.name}-2")

    def _execute(self, config: RunConfig, name: str) -> RunResult:
        with RunProgress(self._console, name) as progress:
            return execute_run(config, self._run_folder(name), self._settings.home, progress.show)

    def _register(self, adapters: list[DemoAdapter]) -> None:
        from adapters.descriptions import describe_source

        registry = open_registry(self._settings)
        registry.add_backbone(describe_source(self._settings.backbone, self._settings.home))
        for adapter in adapters:
            version = registry.create_version(
                adapter.name, self._run_folder(adapter.name) / BUNDLE_NAME
            )
            registry.set_alias(adapter.name, "production", version.number)
            self._console.print(f"  {adapter.name}:{version.number} {version.digest[:12]}")

    @contextmanager
    def _serving(self) -> Iterator[None]:
        log_path = self._out / "server.log"
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(self._settings.port)]
        with log_path.open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())
        try:
            with self._stage("start server", "Starting the server: one backbone, three adapters"):
                self._wait_until_ready(process, log_path)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Client(self._url) as client, self._timed_bar("starting", 20):
            while not client.is_healthy():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EnvironmentProblem(f"The server did not start: {last_line(log)}")
                time.sleep(0.2)

    def _burst(self, adapters: list[DemoAdapter]) -> None:
        requests = [
            (adapter.name, given)
            for adapter, count in zip(adapters, (60, 30, 15), strict=True)
            for given in inputs_of(adapter, count)
        ]
        with self._counting_bar("answered", len(requests)) as advance:
            burst = send_burst(self._url, requests, advance)
        with Client(self._url) as client:
            largest = client.stats()["largest"]
        self._keep_burst(burst, largest)

    def _keep_burst(self, burst: BurstResult, largest: dict[str, Any]) -> None:
        self._report.requests = {**asdict(burst), "largest_mixed_batch": largest}
        self._report.checks["no request of the burst failed"] = burst.failed == 0
        self._report.checks["one call of the backbone held rows of all three tasks"] = (
            len(largest["tasks"]) == 3
        )

    def _swap(self, adapter: DemoAdapter) -> None:
        texts = [given["text"] for given in inputs_of(adapter, 40)]
        bundle = str(self._run_folder(f"{adapter.name}-2") / BUNDLE_NAME)
        with self._timed_bar("requests run", 12):
            swap: SwapResult = swap_version(
                self._url,
                adapter.name,
                bundle,
                texts,
                lambda text: self._console.print(f"  {text}"),
            )
        self._report.checks |= swap.checks
        kept = asdict(swap)
        del kept["checks"]
        self._report.hot_swap = kept

    def _command(self, *arguments: str, expected_seconds: float) -> None:
        command = [sys.executable, "-m", "service.cli", *arguments]
        with self._timed_bar(" ".join(arguments), expected_seconds):
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, text=True, check=False
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise EnvironmentProblem((lines or ["it said nothing"])[-1].removeprefix("Error: "))

    def _environment(self) -> dict[str, str]:
        settings = self._settings
        return quiet_environment(
            {
                "HEADSTOCK_HOME": str(settings.home),
                "HEADSTOCK_BACKBONE": settings.backbone,
                "HEADSTOCK_DATABASE_URL": settings.resolved_database_url(),
                "HEADSTOCK_BLOB_URL": settings.resolved_blob_url(),
            }
        )

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        self._console.print(f"[bold]{title}[/]", highlight=False)
        begin = time.monotonic()
        yield
        self._report.seconds[name] = round(time.monotonic() - begin, 1)
        self._console.print(f"  done in {self._report.seconds[name]} s", highlight=False)

    @contextmanager
    def _timed_bar(self, title: str, expected_seconds: float) -> Iterator[None]:
        """Show a bar that fills at the usual pace of something that tells no progress of its own."""
        columns = (TextColumn("  {task.description}"), BarColumn(30), TimeElapsedColumn())
        note = TextColumn(f"of about {expected_seconds:.0f} s")
        stop = threading.Event()
        with Progress(*columns, note, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=expected_seconds)

            def tick() -> None:
                while not stop.wait(0.5):
                    progress.advance(task, 0.5)

            ticker = threading.Thread(target=tick, daemon=True)
            ticker.start()
            try:
                yield
            finally:
                stop.set()
                ticker.join()

    @contextmanager
    def _counting_bar(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("  {task.description}"), BarColumn(30), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _print_report(console: Console, report: Report, out: Path) -> None:
    table = Table(title="Headstock demo: one backbone, three tasks")
    for column in ("adapter", "task", "metric", "baseline", "before", "after", "test rows"):
        table.add_column(column)
    for name, row in report.tasks.items():
        baseline = next(
            (f"{key} {row[key]:.3f}" for key in ("majority", "lead_1") if row[key] is not None), "-"
        )
        numbers = (f"{row['before']:.3f}", f"{row['after']:.3f}", str(row["test_rows"]))
        table.add_row(name, row["task"], row["metric"], baseline, *numbers)
    console.print(table)
    if report.requests:
        largest = report.requests["largest_mixed_batch"]
        console.print(
            f"Burst: {report.requests['sent']} requests, {report.requests['failed']} failed; most mixed "
            f"call of the backbone: {largest['rows']} rows of {largest['adapters']} adapters and "
            f"{len(largest['tasks'])} tasks."
        )
    if report.hot_swap:
        swap = report.hot_swap
        console.print(
            f"Hot swap: {swap['sent']} requests, {swap['failed']} failed; version {swap['old_version']} "
            f"before the move, {swap['new_version']} after it."
        )
    for check, held in report.checks.items():
        console.print(f"[{'green' if held else 'red'}]{'ok  ' if held else 'FAIL'}[/] {check}")
    seconds = "  ".join(f"{name} {value}" for name, value in report.seconds.items())
    console.print(f"Seconds: {seconds}", highlight=False)
    console.print(f"{'OK' if report.is_ok else 'NOT OK'}. Report: {out / 'report.json'}")
