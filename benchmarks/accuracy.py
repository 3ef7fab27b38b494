"""``headstock bench accuracy``: our trainer with ``auto`` settings beside stock `Trainer` and peft, on test splits.

Both learn the same rows, as many of them, with the same adapter and the same optimisation in numbers, and answer the
same test rows. A cell is one fit of one system; each is kept as a file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.errors import InvalidRequest
from adapters.packaged import DEFAULT_BACKBONE
from benchmarks.cells import Cell, Cells, Difference, paired_difference, points, save_rows
from benchmarks.fits import FitSet, FitWork, cut_set, prepare_work, run_job
from benchmarks.session import DEFAULT_ENCODER, Session
from training.baselines import baselines
from training.contract import DataSettings, FitSettings, RunConfig

OURS, STOCK = "headstock", "Trainer + peft"
_TRAIN_TOKENS, _TEST_ROWS = 100_000, 500


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
            save_rows([asdict(row) for row in rows], table(rows), out, "accuracy")
    return rows


def _run_contest(session: Session, contest: Contest, data: Path, out: Path) -> Row:
    fit_set = contest.fit_set
    model = session.model(fit_set.backbone)
    cut = cut_set(
        data, fit_set.name, _TRAIN_TOKENS, _TEST_ROWS, model, out / "rows" / fit_set.backbone
    )
    kept = Cells(out)
    works: list[FitWork] = []
    ours: list[Cell] = []
    stock: list[Cell] = []
    for seed in range(contest.num_seeds):
        settings = FitSettings(max_tokens=_TRAIN_TOKENS, seed=seed)
        works.append(prepare_work(fit_set, model, cut, settings))
        mine, other = (kept.find(fit_set, system, seed) for system in (OURS, STOCK))
        if mine is None:
            session.say(f"{fit_set.label}, seed {seed}: {OURS}")
            config = RunConfig(
                task=fit_set.task,
                options=fit_set.options,
                backbone=fit_set.backbone,
                data=DataSettings(train=str(cut.train), test=str(cut.test)),
                fit=settings,
                must_learn=False,  # a set that neither learns is a result too
            )
            mine = kept.fit(session, fit_set, OURS, config, works[-1])
        if other is None:
            session.say(f"{fit_set.label}, seed {seed}: {STOCK}")
            other = _fit_stock(session, fit_set, works[-1], seed, mine.dtype, kept)
        session.say(f"  {mine.metric}: {mine.score:.4f} against {other.score:.4f}")
        ours.append(mine)
        stock.append(other)
    return _row(fit_set, works[0], ours, stock)


def _fit_stock(
    session: Session, fit_set: FitSet, work: FitWork, seed: int, dtype: str, cells: Cells
) -> Cell:
    folder = cells.run_folder(fit_set, STOCK, seed)
    job = work.job(dtype, session.options.threads, seed, answer=True)
    outcome = run_job("fit_trainer", job, folder)
    predictions = work.predictions(folder)
    return cells.keep(fit_set, STOCK, seed, dtype, work, predictions, outcome.seconds)


def _row(fit_set: FitSet, work: FitWork, ours: Sequence[Cell], stock: Sequence[Cell]) -> Row:
    metric = work.task.primary_metric
    found = baselines(work.task, work.learned, work.examples)
    simple = [each for name, each in found.items() if name != "tfidf"]
    difference = paired_difference(work, ours, stock)
    return Row(
        fit_set.name,
        fit_set.backbone,
        metric,
        len(ours),
        simple[0][metric] if simple else None,
        found["tfidf"][metric] if "tfidf" in found else None,
        statistics.median(cell.score for cell in stock),
        statistics.median(cell.score for cell in ours),
        difference.mean,
        difference.low,
        difference.high,
    )


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
        points(row.majority),
        points(row.text),
        points(row.stock),
        points(row.ours),
        str(Difference(row.difference, row.low, row.high)),
    )
    return f"| {' | '.join(cells)} |\n"
