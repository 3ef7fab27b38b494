"""What all workloads of one command share: options, backbones, made adapters, and notes for the reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console

from adapters.backbone import BackboneSpec, backbone_name, describe_backbone, find_backbone
from adapters.packaged import DEFAULT_BACKBONE
from adapters.tasks.catalog import AnyTask
from adapters.tokenizer import Tokenizer, load_tokenizer
from benchmarks.bundles import Lora, make_bundle
from benchmarks.environments import OURS, prepare_environment
from benchmarks.machine import peer_version
from benchmarks.peers.wire import Load
from benchmarks.workers import System, Worker

DEFAULT_ENCODER = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. ``is_quick``: less of everything, one run, no peers to install."""

    decoder: str = DEFAULT_BACKBONE
    encoder: str = DEFAULT_ENCODER
    dtype: str = "bfloat16"
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    runs: int = 5
    is_quick: bool = False

    def full_or_quick(self, full: int, quick: int) -> int:
        return quick if self.is_quick else full


@dataclass(frozen=True, slots=True)
class Model:
    """A backbone to measure on."""

    source: str
    spec: BackboneSpec
    tokenizer: Tokenizer


class Session:
    """One run of the command.

    Args:
        home: keeps backbones, peers' environments, made adapters and logs between runs.
        scratch: holds servers' state; the caller deletes it.
    """

    def __init__(self, options: Options, home: Path, scratch: Path, console: Console) -> None:
        self.options = options
        self.home = home
        self.scratch = scratch
        self.notes: list[str] = []
        self.peer_versions: dict[str, str] = {}
        self.logs = home / "bench" / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._console = console
        self._num_started = 0

    @cached_property
    def decoder(self) -> Model:
        return self.model(self.options.decoder)

    @cached_property
    def encoder(self) -> Model:
        return self.model(self.options.encoder)

    def say(self, text: str) -> None:
        """Tell the person who waits what is being done."""
        self._console.print(text, highlight=False)

    def note(self, text: str) -> None:
        """Say something that also belongs under the table."""
        self.notes.append(text)
        self.say(text)

    def adapters(
        self, model: Model, kind: str, tasks: Mapping[str, AnyTask], lora: Lora | None = None
    ) -> dict[str, str]:
        """Return folders of made adapters by name, one for each task; kept under home by ``kind``."""
        root = self.home / "bench" / "adapters" / f"{kind}-{model.spec.fingerprint[:12]}"

        def make(seed: int, name: str) -> str:
            return str(make_bundle(root / name, model.spec, tasks[name], seed, lora))

        with ThreadPoolExecutor(self.options.threads) as pool:
            return dict(zip(tasks, pool.map(make, range(len(tasks)), tasks), strict=True))

    def order(
        self,
        model: Model,
        adapters: Mapping[str, str],
        options: Mapping[str, int | str] | None = None,
        *,
        dtype: str | None = None,
        device: str = "cpu",
    ) -> Load:
        """Return what a worker is told to load, with this session's dtype and threads."""
        given = dict(options or {})
        return Load(
            model.spec.folder,
            dtype or self.options.dtype,
            self.options.threads,
            dict(adapters),
            given,
            device,
        )

    def start(self, system: System) -> Worker:
        """Return a system's process, which still has to `Worker.load`.

        Raises:
            PeerMissing: it can't be installed.
        """
        self._num_started += 1
        log = self.logs / f"{self._num_started}-{_file_name(system.name)}.log"
        worker = Worker(system, self.home, log)
        self._keep_version(system)
        return worker

    def _keep_version(self, system: System) -> None:
        package = system.environment.name
        if system.environment is not OURS and package not in self.peer_versions:
            python = prepare_environment(system.environment, self.home)
            self.peer_versions[package] = peer_version(python, package)

    def model(self, source: str) -> Model:
        folder = find_backbone(source, self.home)
        return Model(
            source, describe_backbone(folder, backbone_name(source)), load_tokenizer(folder)
        )


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
