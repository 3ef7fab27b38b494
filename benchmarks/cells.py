"""Fits whose answers to test rows are kept, a file each, so that a benchmark that was stopped goes on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.bundle import read_manifest
from benchmarks.fits import FitSet, FitWork
from benchmarks.session import Session
from service.runs import execute_run
from training.contract import BUNDLE_NAME, PREDICTIONS_NAME, RunConfig

_RESAMPLES = 1000
_DROPPED = ("scores", "start_score", "end_score")  # of a prediction: not needed to score it


@dataclass(frozen=True, slots=True)
class Cell:
    """One fit of one system, and what its answers to the test rows scored."""

    set: str
    task: str
    backbone: str
    system: str
    seed: int
    dtype: str
    metric: str
    metrics: dict[str, float]
    num_train_rows: int
    num_test_rows: int
    seconds: float
    plan: dict[str, Any]
    predictions: list[dict[str, Any]]

    @property
    def score(self) -> float:
        return self.metrics[self.metric]


class Cells:
    """The cells of one benchmark, in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def find(self, fit_set: FitSet, system: str, seed: int) -> Cell | None:
        """Return a cell that was kept."""
        path = self._path(fit_set, system, seed)
        return Cell(**json.loads(path.read_text())) if path.is_file() else None

    def run_folder(self, fit_set: FitSet, system: str, seed: int) -> Path:
        """Return where a fit keeps its own files."""
        return self.out / "runs" / _name(fit_set, system, seed)

    def fit(
        self, session: Session, fit_set: FitSet, system: str, config: RunConfig, work: FitWork
    ) -> Cell:
        """Run a config of ours, as `headstock train` does, and keep its cell."""
        folder = self.run_folder(fit_set, system, config.fit.seed)
        result = execute_run(config, folder, session.home, lambda event: None)
        dtype = str(read_manifest(folder / BUNDLE_NAME).lineage.dtype)
        with (folder / PREDICTIONS_NAME).open() as file:
            predictions = [json.loads(line)["prediction"] for line in file]
        seconds = result.seconds["fit"]
        return self.keep(fit_set, system, config.fit.seed, dtype, work, predictions, seconds)

    def keep(
        self,
        fit_set: FitSet,
        system: str,
        seed: int,
        dtype: str,
        work: FitWork,
        predictions: Sequence[dict[str, Any]],
        seconds: float,
    ) -> Cell:
        """Score predictions of the test rows, and write them down."""
        cell = Cell(
            fit_set.name,
            fit_set.task,
            fit_set.backbone,
            system,
            seed,
            dtype,
            work.task.primary_metric,
            work.task.score(predictions, [example.target for example in work.examples]),
            work.num_rows,
            len(work.examples),
            seconds,
            asdict(work.plan),
            [{k: v for k, v in each.items() if k not in _DROPPED} for each in predictions],
        )
        path = self._path(fit_set, system, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(cell), ensure_ascii=False) + "\n")
        return cell

    def _path(self, fit_set: FitSet, system: str, seed: int) -> Path:
        return self.out / "cells" / f"{_name(fit_set, system, seed)}.json"


def _name(fit_set: FitSet, system: str, seed: int) -> str:
    return f"{fit_set.name}-{Path(fit_set.backbone).name}-{system.split()[0].lower()}-{seed}"


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one system's cells are than another's, in points, with the 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def paired_difference(work: FitWork, ours: Sequence[Cell], theirs: Sequence[Cell]) -> Difference:
    """Compare by paired bootstrap over rows and seeds: both are drawn alike for the two."""
    rng = np.random.default_rng(0)
    targets = [example.target for example in work.examples]
    metric, num_seeds, num_rows = work.task.primary_metric, len(ours), len(targets)
    tallies = [
        [work.task.tally(cell.predictions, targets) for cell in cells] for cells in (ours, theirs)
    ]
    found = []
    for _ in range(_RESAMPLES):
        counts_1N = rng.multinomial(num_rows, [1 / num_rows] * num_rows)[None] * 1.0
        seeds = rng.integers(num_seeds, size=num_seeds)
        better, worse = (
            statistics.mean(float(of_seed[s].weigh(counts_1N)[metric][0]) for s in seeds)
            for of_seed in tallies
        )
        found.append(100 * (better - worse))
    means = [statistics.mean(cell.score for cell in cells) for cells in (ours, theirs)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Difference(100 * (means[0] - means[1]), float(low), float(high))


def save_rows(rows: Sequence[Mapping[str, Any]], table: str, out: Path, name: str) -> None:
    """Write results as JSON and as the Markdown table that they are shown in."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / f"{name}.md").write_text(table)


def points(value: float | None) -> str:
    """Return a share as points, as tables show it."""
    return "" if value is None else f"{100 * value:.1f}"
