"""``headstock bench ablation``: what augmentation, and adapting the last layers only, do to accuracy and time.

Each variant is a run like any other but for a few settings, on the same rows for as many tokens as the plain run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest
from adapters.packaged import DEFAULT_BACKBONE
from benchmarks.cells import Cell, Cells, Difference, paired_difference, points, save_rows
from benchmarks.fits import Cut, FitSet, FitWork, cut_set, prepare_work
from benchmarks.session import DEFAULT_ENCODER, Session
from training.contract import (
    AugmentationSettings,
    BackTranslationSettings,
    DataSettings,
    FitSettings,
    LoraSettings,
    RunConfig,
)

PLAIN = "plain"
_TEST_ROWS = 500
_FEW_TOKENS = (
    20_000  # of rows to augment, seen five times: where there are few rows, more might help
)
_KEPT_BYTES = 2**31
_CLASSIFICATION = "text-classification"


@dataclass(frozen=True, slots=True)
class Variant:
    """What is unlike the plain run. A name's first word must tell it from its set's others."""

    name: str
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    last_layers: int | None = None
    keeps_frozen: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A set, the tokens of its rows, those that a fit sees, and its variants; the first is the plain run."""

    name: str
    fit_set: FitSet
    num_tokens: int
    max_tokens: int
    num_seeds: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A variant's line of the table: medians over seeds, and the difference to the plain run in points."""

    set: str
    backbone: str
    variant: str
    metric: str
    seeds: int
    value: float
    difference: float
    low: float
    high: float
    speed: float


_AUGMENTED = (
    Variant(PLAIN),
    Variant("replace", {"replace": 0.1}),
    Variant("swap", {"swap": 0.1}),
    Variant("delete", {"delete": 0.1}),
)


def _last(*numbers: int) -> tuple[Variant, ...]:
    plain = [Variant(f"last-{n} layers", last_layers=n) for n in numbers]
    kept = [
        Variant(f"last-{n}-kept layers, frozen ones kept", last_layers=n, keeps_frozen=True)
        for n in numbers
    ]
    return (Variant(PLAIN), *(each for pair in zip(plain, kept, strict=True) for each in pair))


def _studies(translators: BackTranslationSettings | None) -> Iterator[Study]:
    augmented: tuple[Variant, ...] = _AUGMENTED
    if translators is not None:
        augmented += (Variant("back-translation", {"back_translation": translators}),)
    for name in ("sentence_polarity", "banking77"):
        fit_set = FitSet(name, _CLASSIFICATION, DEFAULT_ENCODER)
        yield Study("augmentation", fit_set, _FEW_TOKENS, 5 * _FEW_TOKENS, 3, augmented)
    for name, task in (
        ("sentence_polarity", _CLASSIFICATION),
        ("stsb_open", "regression"),
        ("squad_v1", "question-answering"),
    ):
        yield Study("layers", FitSet(name, task, DEFAULT_ENCODER), 40_000, 120_000, 1, _last(3, 1))
    decoder = FitSet("sentence_polarity", _CLASSIFICATION, DEFAULT_BACKBONE)
    yield Study("layers", decoder, 33_000, 100_000, 1, _last(10, 5))


def run_ablation(
    session: Session,
    data: Path,
    only: Sequence[str],
    out: Path,
    translators: BackTranslationSettings | None = None,
) -> list[Row]:
    """Run what is not in ``out`` yet, and write ``ablation.json`` and ``ablation.md`` there after each study.

    Args:
        only: names of studies, or of sets; all without.
        translators: adapters of a running server; None leaves back-translation out.

    Raises:
        InvalidRequest: there is no such study.
    """
    chosen = [
        study
        for study in _studies(translators)
        if not only or study.name in only or study.fit_set.name in only
    ]
    if not chosen:
        names = sorted({name for s in _studies(None) for name in (s.name, s.fit_set.name)})
        raise InvalidRequest(
            f"No study or set '{', '.join(only)}'. There are {', '.join(names)}.", param="only"
        )
    rows: list[Row] = []
    for study in chosen:
        rows += run_study(session, study, data, out / study.name)
        save_rows([asdict(row) for row in rows], table(rows), out, "ablation")
    return rows


def run_study(session: Session, study: Study, data: Path, out: Path) -> list[Row]:
    """Run one study's fits that are not in ``out`` yet."""
    fit_set = study.fit_set
    model = session.model(fit_set.backbone)
    cut = cut_set(data, fit_set.name, study.num_tokens, _TEST_ROWS, model, out / "rows")
    kept = Cells(out)
    work = prepare_work(fit_set, model, cut, FitSettings(max_tokens=study.max_tokens))
    rows: list[Row] = []
    plain: list[Cell] = []
    for variant in study.variants:
        cells = []
        for seed in range(study.num_seeds):
            cell = kept.find(fit_set, variant.name, seed)
            if cell is None:
                session.say(f"{fit_set.label}, {variant.name}, seed {seed}")
                config = _config(study, variant, cut, seed)
                cell = kept.fit(session, fit_set, variant.name, config, work)
            session.say(f"  {cell.metric}: {cell.score:.4f} in {cell.seconds:.0f} s")
            cells.append(cell)
        plain = plain or cells
        rows.append(_row(variant, work, cells, plain))
    return rows


def _config(study: Study, variant: Variant, cut: Cut, seed: int) -> RunConfig:
    fit_set = study.fit_set
    augmentation = AugmentationSettings(**variant.augmentation) if variant.augmentation else None
    return RunConfig(
        task=fit_set.task,
        options=fit_set.options,
        backbone=fit_set.backbone,
        data=DataSettings(train=str(cut.train), test=str(cut.test), augmentation=augmentation),
        lora=LoraSettings(last_layers=variant.last_layers),
        fit=FitSettings(
            max_tokens=study.max_tokens,
            seed=seed,
            frozen_cache_bytes=_KEPT_BYTES if variant.keeps_frozen else 0,
        ),
        evaluate_untrained=False,
        must_learn=False,
    )


def _row(variant: Variant, work: FitWork, cells: Sequence[Cell], plain: Sequence[Cell]) -> Row:
    difference = paired_difference(work, cells, plain)
    first = cells[0]
    return Row(
        first.set,
        first.backbone,
        variant.name,
        first.metric,
        len(cells),
        statistics.median(cell.score for cell in cells),
        difference.mean,
        difference.low,
        difference.high,
        statistics.median(c.seconds for c in plain) / statistics.median(c.seconds for c in cells),
    )


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table."""
    head = (
        "| set | backbone | variant | metric | seeds | value | against plain (95 %) | speed |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(map(_line, rows))


def _line(row: Row) -> str:
    difference = Difference(row.difference, row.low, row.high)
    cells = (
        row.set,
        row.backbone,
        row.variant,
        row.metric,
        str(row.seeds),
        points(row.value),
        "" if row.variant == PLAIN else str(difference),
        f"{row.speed:.2f}x",
    )
    return f"| {' | '.join(cells)} |\n"
