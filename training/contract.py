"""All that crosses the border between a training run and whoever started it.

``python -m training run.json --out FOLDER`` reads a `RunConfig`, writes ``events.jsonl`` (one `Event` a line),
``bundle/`` and ``result.json`` into the folder, and ends with an `ExitCode`. SIGTERM means: save a checkpoint
and stop; the same command then goes on from there. Free of torch, so that the service may import it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adapters.device import DeviceName
from adapters.dtype import DtypeName
from adapters.packaged import DEFAULT_BACKBONE
from adapters.tasks.base import Strict
from adapters.tensors import canonical_digest
from training.findings import Report

CONFIG_NAME = "run.json"
EVENTS_NAME = "events.jsonl"
RESULT_NAME = "result.json"
BUNDLE_NAME = "bundle"
UNTRAINED_NAME = "untrained"
CHECKPOINT_NAME = "checkpoint.safetensors"
PREDICTIONS_NAME = "predictions.jsonl"
ESTIMATE_NAME = "estimate.json"
STOP_NAME = "stop"  # a file that asks all processes of a fit to save and end
REPORT_NAME, PAGE_NAME = "report.json", "report.html"


_MOST_PISSA_RANK = 256  # the adapter has twice as many


class ExitCode(IntEnum):
    """How a run ended; the process exits with it."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2  # the config or the data is at fault: running it again can't help
    PAUSED = 3  # stopped by SIGTERM, with a checkpoint
    # What it ran on failed: a process of the same fit is gone, a disk is full. Again goes on from the checkpoint.
    INTERRUPTED = 4


class BackTranslationSettings(Strict):
    """Into another language and back, by translation adapters of a running Headstock server."""

    url: str = Field("http://127.0.0.1:8000", description="Where the server listens.")
    there: str = Field(
        min_length=1, description="Adapter that translates the texts, such as en-zh."
    )
    back: str = Field(min_length=1, description="Adapter that translates them back.")
    min_chrf: float = Field(
        40.0, ge=0, le=100, description="Keep a copy if its chrF to the text is at least this."
    )


class AugmentationSettings(Strict):
    """Changed copies of training rows: each share above zero adds ``copies`` of every row."""

    replace: float = Field(
        0.0, ge=0, le=1, description="Share of words replaced by words of other rows."
    )
    swap: float = Field(0.0, ge=0, le=1, description="Share of words that change places.")
    delete: float = Field(0.0, ge=0, le=1, description="Chance of each word to go.")
    copies: int = Field(1, ge=1, le=16, description="Copies by each of the three.")
    seed: int = Field(0, ge=0)
    back_translation: BackTranslationSettings | None = None


class DataSettings(Strict):
    """Files of examples: JSONL, CSV or Parquet, any fsspec URL."""

    train: str | None = Field(None, description="Rows to train on.")
    validation: str | None = Field(
        None, description="Rows to choose the best weights by, and to calibrate on."
    )
    test: str | None = Field(None, description="Rows to report on; never trained on.")
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="Or: share of the training file's rows for it."
    )
    test_share: float = Field(0.0, ge=0, lt=1, description="Or: share of them to test on.")
    split_seed: int = Field(0, ge=0, description="Other seeds draw other rows.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="The task's field to the file's column, as text: review."
    )
    class_names: list[str] | None = Field(
        None, description="What numbers in the column of labels or tags stand for, from 0."
    )
    stop_words: Literal["en", "zh"] | None = Field(
        None, description="Leave this language's stop words out of texts, also when serving."
    )
    class_weights: Literal["balanced"] | None = Field(
        None, description="Weigh rows so that all classes count alike."
    )
    augmentation: AugmentationSettings | None = Field(
        None, description="Add changed copies of training rows."
    )
    max_row_tokens: int | None = Field(
        None, ge=8, description="Leave longer rows out of training; testing takes them all."
    )
    max_test_rows: int | None = Field(None, ge=1, description="Test on the first rows only.")

    @model_validator(mode="after")
    def _check_shares(self) -> DataSettings:
        for name in ("validation", "test"):
            if getattr(self, name) and getattr(self, f"{name}_share"):
                raise ValueError(f"give either data.{name} or data.{name}_share")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("data.validation_share and data.test_share leave no row to train on")
        return self


class LoraSettings(Strict):
    """The low-rank update."""

    rank: int = Field(8, ge=1, le=512)
    alpha: float = Field(16.0, gt=0, description="Strength; the update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    use_rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead, which suits high ranks."
    )
    init: Literal["default", "pissa"] = Field(
        "default",
        description="Start: no change with random A, or the weights' principal directions (rank doubles).",
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Last parts of the module names to adapt."
    )
    last_layers: int | None = Field(
        None, ge=1, description="Adapt only the last layers; faster, somewhat less accurate."
    )

    @model_validator(mode="after")
    def _check_doubled_rank(self) -> LoraSettings:
        if self.init == "pissa" and self.rank > _MOST_PISSA_RANK:
            raise ValueError(
                f"rank '{self.rank}' with init 'pissa' would serve rank {2 * self.rank}; use at most {_MOST_PISSA_RANK}"
            )
        return self


Auto = Literal["auto"]
Schedule = Literal["linear", "cosine", "constant"]
Epochs = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
BatchTokens = Annotated[int, Field(ge=16)]


class FitSettings(Strict):
    """The optimisation; ``auto`` is decided by the data and the backbone's size, told and stored."""

    epochs: Epochs | Auto = "auto"
    max_tokens: int | None = Field(None, ge=1, description="Stop after this many tokens.")
    learning_rate: Rate | Auto = "auto"
    rate_factor: float = Field(1.0, gt=0, description="The rate is multiplied by this.")
    schedule: Schedule = Field("linear", description="How the rate falls after the warm-up.")
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of steps with a rising rate.")
    batch_tokens: BatchTokens | Auto = Field("auto", description="Tokens a batch.")
    batch_rows: int | None = Field(
        None,
        ge=1,
        description="Or: rows a batch, which then has the tokens of so many of average length.",
    )
    accumulation: int = Field(1, ge=1, description="Batches a step.")
    validations: int = Field(
        5, ge=1, description="Times that validation rows, if any, are scored; the best weights win."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many scores in a row that were no better."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again instead of keeping them: less memory, slower."
    )
    frozen_cache_bytes: int = Field(
        0,
        ge=0,
        description="Room for the outputs of the layers below those of lora.last_layers, computed once a row.",
    )
    max_grad_norm: float = Field(1.0, gt=0)
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of a label's weight that all classes or tokens get."
    )
    weight_decay: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_seconds: float = Field(120.0, gt=0, description="Time between checkpoints.")

    @model_validator(mode="after")
    def _check_batch(self) -> FitSettings:
        if self.batch_rows is not None and self.batch_tokens != "auto":
            raise ValueError("give either fit.batch_tokens or fit.batch_rows")
        return self


class RunConfig(Strict):
    """What to train, to estimate what training would take, or which bundle to evaluate."""

    action: Literal["train", "estimate", "evaluate"] = "train"
    task: str = Field(description="The task's Hub name, such as text-classification.")
    options: dict[str, Any] = Field(default_factory=dict, description="The task's options.")
    backbone: str = Field(DEFAULT_BACKBONE, description="Packaged name, folder, or Hub id.")
    dtype: DtypeName = "auto"
    device: DeviceName = Field(
        "cpu",
        description="cpu, cuda, or such as cuda:1. Of processes that fit together, cuda gives each its own GPU.",
    )
    data: DataSettings
    lora: LoraSettings = Field(default_factory=LoraSettings)
    fit: FitSettings = Field(default_factory=FitSettings)
    parent: str | None = Field(
        None, description="Folder of a bundle to go on from, with its options and LoRA."
    )
    bundle: str | None = Field(None, description="Folder of the bundle to evaluate.")
    evaluate_untrained: bool = Field(False, description="Also test before training.")
    must_learn: bool = Field(
        True, description="Fail if nothing was learned, or the saved bundle lost it."
    )

    @model_validator(mode="after")
    def _check_decay(self) -> RunConfig:
        if self.lora.init == "pissa" and self.fit.weight_decay:
            raise ValueError(
                f"fit.weight_decay '{self.fit.weight_decay}' would shrink the frozen half of a 'pissa' start; use 0"
            )
        return self

    def digest(self) -> str:
        """Return what an estimate and the run it is for have in common."""
        return canonical_digest(self.model_dump(mode="json", exclude={"action"}))


class EventKind(StrEnum):
    STARTED = "started"
    STAGE = "stage"  # a named part of the run begins
    PROGRESS = "progress"  # data: stage, done, total, eta_seconds, …
    WARNING = "warning"
    METRICS = "metrics"  # data: of, split, metrics
    FINISHED = "finished"  # data: the run's result
    PAUSED = "paused"
    FAILED = "failed"  # message: the reason


class Event(Strict):
    """One line of ``events.jsonl``; numbers rise by one, also across a resumed run."""

    number: int
    time: float = Field(description="Seconds since 1970.")
    kind: EventKind
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class Band(Strict):
    """Between which numbers something is expected."""

    low: float
    high: float

    def __add__(self, other: Band) -> Band:
        return Band(low=self.low + other.low, high=self.high + other.high)

    def times(self, factor: float) -> Band:
        return Band(low=self.low * factor, high=self.high * factor)


class Estimate(Strict):
    """What a dry run says of the run to come; written to ``estimate.json``."""

    config_digest: str = Field(description="Of the config without its action: the run it is for.")
    seconds: dict[str, Band] = Field(description="By stage: start, fit, validation, test.")
    peak_bytes: Band
    num_steps: int
    num_tokens: int = Field(description="Of training, a row counting once an epoch.")

    @property
    def total_seconds(self) -> Band:
        return sum(self.seconds.values(), Band(low=0, high=0))


class RunResult(Strict):
    """``result.json``: what a finished run made and measured."""

    task: str
    primary_metric: str
    digest: str | None = None
    metrics: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="By whose: before, after, and each baseline."
    )
    intervals: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Of each metric after training: 95 %, bootstrap over rows.",
    )
    calibration: dict[str, float] = Field(
        default_factory=dict, description="On validation rows, as ece_before; and what was set."
    )
    data: Report | None = Field(None, description="What the data gate said.")
    problems: list[str] = Field(
        default_factory=list, description="Why the bundle is not worth serving; none if it is."
    )
    num_train_rows: int = 0
    num_test_rows: int = 0
    num_tokens: int = 0
    auto: dict[str, float] = Field(
        default_factory=dict, description="The optimisation's numbers, those of 'auto' included."
    )
    best_step: int | None = Field(
        None, description="Step whose weights validation liked best; None without validation."
    )
    seconds: dict[str, float] = Field(default_factory=dict, description="By stage.")
    peak_bytes: int = Field(0, description="Most memory that the run held.")
    estimate: Estimate | None = Field(None, description="What a dry run had said.")
