"""``headstock bench accuracy``: our trainer with ``auto`` settings beside stock `Trainer` and peft, on test splits.

Both learn the same rows, as many of them, with the same adapter and the same optimisation in numbers, and answer the
same test rows. A cell is one fit of one system; each is kept as a file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.bundle import read_manifest
from adapters.errors import InvalidRequest
from adapters.packaged import DEFAULT_BACKBONE
from benchmarks.fits import FitSet, FitWork, cut_set, prepare_work, run_job
from benchmarks.session import DEFAULT_ENCODER, Session
from service.runs import execute_run
from training.baselines import baselines
from training.contract import (
    BUNDLE_NAME,
    PREDICTIONS_NAME,
    DataSettings,
    FitSettings,
    RunConfig,
)

OURS, STOCK = "headstock", "Trainer + peft"
_TRAIN_TOKENS, _TEST_ROWS = 100_000, 500
_RESAMPLES = 1000
_DROPPED = ("scores", "start_score", "end_score")  # of a prediction: not needed to score it


@dataclass(frozen=True, slots=True)
class Contest:
    """A set with the number of seeds it is fitted with."""

    fit_set: FitSet
    num_seeds: int


def _contests() -> Iterator[Contest]:
    classification = "text-classification"
    for name in ("banking77", "sentence_polarity", "sms_spam"):
        yield Contest(FitSet(name, classification, DEFAULT_ENCODER), 3)
    yield Contest(FitSet("stsb_open", "regression", DEFAULT_ENCODER), 3)
    for backbone in (DEFAULT_ENCODER, DEFAULT_BACKBONE):
        yield Contest(FitSet("wnut17", "token-classification", backbone), 1)
        yield Contest(FitSet("squad_v1", "question-answering", backbone), 1)
        yield Contest(FitSet("squad_v2", "question-answering", backbone), 1)
    for name in ("sentence_polarity", "banking77", "sms_spam", "sib200_zh"):
        yield Contest(FitSet(name, classification, DEFAULT_BACKBONE), 1)
    yield Contest(FitSet("scitldr", "summarization", DEFAULT_BACKBONE), 1)
    yield Contest(FitSet("tatoeba_en_zh", "translation", DEFAULT_BACKBONE), 1)


CONTESTS = tuple(_contests())


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


@dataclass(frozen=True, slots=True)
class Row:
    """One set's line of the table; the difference is ours minus stock, in points, with its 95 % interval."""

    set: str
    backbone: str
    metric: str
    seeds: int
    majority: float | None
    text: float | None
    stock: float
    ours: float
    difference: float
    low: float
    high: float


def run_accuracy(session: Session, data: Path, only: Sequence[str], out: Path) -> list[Row]:
    """Run what is not in ``out`` yet, and write ``accuracy.json`` and ``accuracy.md`` there after each set.

    Raises:
        InvalidRequest: there is no such set.
    """
    known = {contest.fit_set.name for contest in CONTESTS}
    for name in only:
        if name not in known:
            raise InvalidRequest(f"No set '{name}'. There are {', '.join(sorted(known))}.")
    rows = []
    for contest in CONTESTS:
        if not only or contest.fit_set.name in only:
            rows.append(_run_contest(session, contest, data, out))
            _save(rows, out)
    return rows


def _run_contest(session: Session, contest: Contest, data: Path, out: Path) -> Row:
    fit_set = contest.fit_set
    model = session.model(fit_set.backbone)
    cut = cut_set(
        data, fit_set.name, _TRAIN_TOKENS, _TEST_ROWS, model, out / "rows" / fit_set.backbone
    )
    works: dict[int, FitWork] = {}
    cells: dict[str, list[Cell]] = {OURS: [], STOCK: []}
    for seed in range(contest.num_seeds):
        settings = FitSettings(max_tokens=_TRAIN_TOKENS, seed=seed)
        work = works[seed] = prepare_work(fit_set, model, cut, settings)
        ours = _cell(out, fit_set, OURS, seed)
        if ours is None:
            session.say(f"{fit_set.label}, seed {seed}: {OURS}")
            config = RunConfig(
                task=fit_set.task,
                options=fit_set.options,
                backbone=fit_set.backbone,
                data=DataSettings(train=str(cut.train), test=str(cut.test)),
                fit=settings,
            )
            ours = _fit_ours(session, fit_set, config, work, out)
        cells[OURS].append(ours)
        stock = _cell(out, fit_set, STOCK, seed)
        if stock is None:
            session.say(f"{fit_set.label}, seed {seed}: {STOCK}")
            stock = _fit_stock(session, fit_set, work, seed, ours.dtype, out)
        cells[STOCK].append(stock)
        session.say(f"  {ours.metric}: {_main(ours):.4f} against {_main(stock):.4f}")
    return _row(fit_set, works[0], cells)


def _fit_ours(
    session: Session, fit_set: FitSet, config: RunConfig, work: FitWork, out: Path
) -> Cell:
    folder = out / "runs" / _name(fit_set, OURS, config.fit.seed)
    result = execute_run(config, folder, session.home, lambda event: None)
    dtype = str(read_manifest(folder / BUNDLE_NAME).lineage.dtype)
    lines = (folder / PREDICTIONS_NAME).read_text().splitlines()
    predictions = [json.loads(line)["prediction"] for line in lines]
    seconds = result.seconds["fit"]
    return _keep(out, fit_set, OURS, config.fit.seed, dtype, work, predictions, seconds)


def _fit_stock(
    session: Session, fit_set: FitSet, work: FitWork, seed: int, dtype: str, out: Path
) -> Cell:
    folder = out / "runs" / _name(fit_set, STOCK, seed)
    job = work.job(dtype, session.options.threads, seed, answer=True)
    outcome = run_job("fit_trainer", job, folder)
    predictions = work.predictions(folder)
    return _keep(out, fit_set, STOCK, seed, dtype, work, predictions, outcome.seconds)


def _keep(
    out: Path,
    fit_set: FitSet,
    system: str,
    seed: int,
    dtype: str,
    work: FitWork,
    predictions: Sequence[dict[str, Any]],
    seconds: float,
) -> Cell:
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
    path = out / "cells" / f"{_name(fit_set, system, seed)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(cell), ensure_ascii=False) + "\n")
    return cell


def _cell(out: Path, fit_set: FitSet, system: str, seed: int) -> Cell | None:
    path = out / "cells" / f"{_name(fit_set, system, seed)}.json"
    return Cell(**json.loads(path.read_text())) if path.is_file() else None


def _name(fit_set: FitSet, system: str, seed: int) -> str:
    return f"{fit_set.name}-{fit_set.backbone}-{system.split()[0].lower()}-{seed}"


def _main(cell: Cell) -> float:
    return cell.metrics[cell.metric]


def _row(fit_set: FitSet, work: FitWork, cells: dict[str, list[Cell]]) -> Row:
    targets = [example.target for example in work.examples]
    metric = work.task.primary_metric
    found = baselines(work.task, work.learned, work.examples)
    simple = [each for name, each in found.items() if name != "tfidf"]
    differences = _resampled(work, cells, targets)
    return Row(
        fit_set.name,
        fit_set.backbone,
        metric,
        len(cells[OURS]),
        simple[0][metric] if simple else None,
        found["tfidf"][metric] if "tfidf" in found else None,
        statistics.median(map(_main, cells[STOCK])),
        statistics.median(map(_main, cells[OURS])),
        100 * _mean_difference(cells),
        float(np.percentile(differences, 2.5)),
        float(np.percentile(differences, 97.5)),
    )


def _mean_difference(cells: dict[str, list[Cell]]) -> float:
    return statistics.mean(map(_main, cells[OURS])) - statistics.mean(map(_main, cells[STOCK]))


def _resampled(work: FitWork, cells: dict[str, list[Cell]], targets: Sequence[Any]) -> list[float]:
    """Return differences in points of paired bootstrap samples: rows drawn alike for both systems, and seeds too."""
    rng = np.random.default_rng(0)
    metric, num_seeds = work.task.primary_metric, len(cells[OURS])
    tallies = {
        system: [work.task.tally(cell.predictions, targets) for cell in fits]
        for system, fits in cells.items()
    }
    differences = []
    for _ in range(_RESAMPLES):
        counts_1N = rng.multinomial(len(targets), [1 / len(targets)] * len(targets))[None] * 1.0
        seeds = rng.integers(num_seeds, size=num_seeds)
        ours, stock = (
            statistics.mean(float(tallies[system][s].weigh(counts_1N)[metric][0]) for s in seeds)
            for system in (OURS, STOCK)
        )
        differences.append(100 * (ours - stock))
    return differences


def _save(rows: Sequence[Row], out: Path) -> None:
    (out / "accuracy.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    (out / "accuracy.md").write_text(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table, with the mean difference below."""
    head = (
        "| set | backbone | metric | seeds | majority | TF-IDF | Trainer + peft | Headstock | difference (95 %) |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    mean = statistics.mean(row.difference for row in rows)
    return (
        head
        + "".join(map(_line, rows))
        + f"\nMean difference over {len(rows)} sets: {mean:+.2f} points.\n"
    )


def _line(row: Row) -> str:
    cells = (
        row.set,
        row.backbone,
        row.metric,
        str(row.seeds),
        _points(row.majority),
        _points(row.text),
        _points(row.stock),
        _points(row.ours),
        f"{row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})",
    )
    return f"| {' | '.join(cells)} |\n"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
