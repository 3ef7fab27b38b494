"""What a run works with once its backbone is loaded: task, rows, plan, and fresh trainees and bundles of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from adapters.backbone import Backbone
from adapters.bundle import Manifest
from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import Labelled
from adapters.tasks.catalog import AnyTask, get_task
from adapters.tasks.room import row_room
from adapters.tokenizer import Tokenizer
from training.auto import FitPlan, plan_fit
from training.batches import make_batches
from training.checks import is_masked, length_findings, masked_findings
from training.contract import EventKind, RunConfig
from training.data import Example
from training.evaluation import encode_all
from training.events import EventLog
from training.export import check_parent, load_weights, lora_settings_of, seal, write_weights
from training.findings import Finding
from training.gate import check_examples
from training.inputs import Inputs
from training.parent import check_lora, check_options
from training.resampling import Interval
from training.trainer import Trainee, build_trainee

Metrics = dict[str, dict[str, float]]


class Setup:
    """One run's task on its backbone.

    Args:
        log: told how many rows are left out.

    Attributes:
        task: the config's or, if the run goes on from a parent, the parent's; calibration replaces it.
        parent: digest of the parent's bundle.

    Raises:
        InvalidRequest: the backbone can't do the task, or the config asks for what the parent has not.
        InvalidBundle: the parent is another task's or backbone's.
    """

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        backbone: Backbone,
        tokenizer: Tokenizer,
        log: EventLog,
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.backbone = backbone
        self.tokenizer = tokenizer
        self._log = log
        self.parent: str | None = None
        self.task = self._find_task()

    def _find_task(self) -> AnyTask:
        spec = self.backbone.spec
        if self.config.parent is not None:
            manifest = check_parent(Path(self.config.parent), spec, self.config.task)
            self.parent = manifest.digest
            task = get_task(manifest.task, manifest.options)
            check_options(task, self.config.options)
            own = lora_settings_of(Path(self.config.parent))
            check_lora(self.backbone, task, self.config.lora, own)
            return task
        assert self.inputs.task is not None
        task = self.inputs.task
        if spec.family not in task.families:
            raise InvalidRequest(
                f"'{task.name}' writes text, which an {spec.family} such as '{spec.name}' can't. "
                "Choose a decoder or an encoder-decoder with --backbone.",
                param="backbone",
            )
        return task

    def rows(self) -> list[Labelled]:
        """Return the rows to train on; those that are too long are left out, and counted."""
        parameters = self.task.Parameters.model_validate({})
        fits, limit = self._room(), self.max_row_tokens
        rows: list[Labelled] = []
        kept: list[Example] = []
        masked: list[int] = []  # lines
        for example in self.inputs.train:
            try:
                parts = self.task.encode_parts(self.tokenizer, example.request, parameters, fits)
                labelled = self.task.label_parts(self.tokenizer, parts, example.target)
            except TextTooLong:
                continue
            except (InvalidData, InvalidRequest) as error:
                raise InvalidData(
                    f"Line {example.line}: {error.message}", param=error.param
                ) from error
            if all(len(row.token_ids) <= limit and self._can_write(row) for row in labelled):
                rows += [replace(row, weight=example.weight) for row in labelled]
                kept.append(example)
                masked += [example.line] if all(map(is_masked, labelled)) else []
        num_rows = len(self.inputs.train)
        self._report(length_findings("train", num_rows - len(kept), num_rows, limit))
        self._report(masked_findings(masked, num_rows))
        if len(kept) < num_rows:
            check_examples(kept)  # what is left must still be enough to learn from
        return rows

    def check_answerable(self) -> None:
        """Find validation and test rows that no answer can be given to, before anything is fitted.

        Raises:
            InvalidData: there is one; the message names its line.
        """
        for name in ("validation", "test"):
            rows: list[Example] = getattr(self.inputs, name)
            try:
                encode_all(self.task, self.tokenizer, self.backbone.spec, rows)
            except InvalidData as error:
                raise InvalidData(
                    f"The {name} rows: {error.message}", param=f"data.{name}"
                ) from error

    def _report(self, findings: Iterable[Finding]) -> None:
        report = self.inputs.report
        for finding in findings:
            report.findings.append(finding)
            self._log.emit(EventKind.WARNING, finding.message)
        report.validate_data()

    @property
    def max_row_tokens(self) -> int:
        """The longest row that is trained on: as the config says, else what the backbone takes."""
        return self.config.data.max_row_tokens or self._room()

    def _room(self) -> int:
        parameters = self.task.Parameters.model_validate({})
        return row_room(self.task, self.backbone.spec, parameters)

    def _can_write(self, row: Labelled) -> bool:
        """Tell whether an answer has room on the decoder's side of an encoder-decoder."""
        backbone = self.backbone
        if backbone.spec.family != "encoder-decoder" or self.task.head(backbone.spec.family):
            return True
        return len(backbone.start_ids) + len(row.labels) <= backbone.spec.max_tokens

    def plan(self, rows: list[Labelled]) -> FitPlan:
        """Return the optimisation in numbers.

        Raises:
            InvalidRequest: labels are to be smoothed, but are values; or patience has nothing to go by.
        """
        settings = self.config.fit
        if settings.patience is not None and not self.inputs.validation:
            raise InvalidRequest(
                f"fit.patience is '{settings.patience}', but there are no validation rows to go by. Give some "
                "(data.validation, data.validation_share), or leave it out.",
                param="fit.patience",
            )
        if settings.label_smoothing and rows[0].loss in ("value", "labels"):
            raise InvalidRequest(
                f"fit.label_smoothing '{settings.label_smoothing}' is for one class of several and for tokens; "
                f"'{self.task.name}' learns values here. Leave it out.",
                param="fit.label_smoothing",
            )
        return plan_fit(settings, rows, self.backbone.spec.hidden_size)

    def batches(self, plan: FitPlan, rows: list[Labelled]) -> list[list[Labelled]]:
        """Return the fit's batches in order."""
        settings = self.config.fit
        return make_batches(
            rows,
            plan.batch_tokens,
            seed=settings.seed,
            epochs=plan.epochs,
            max_tokens=settings.max_tokens,
        )

    def trainee(self) -> Trainee:
        """Put LoRA layers into the backbone, fresh ones or the parent's, with a head beside them."""
        fit, lora = self.config.fit, self.config.lora
        folder = None if self.config.parent is None else Path(self.config.parent)
        if folder is not None:
            lora = lora_settings_of(folder)
        trainee = build_trainee(
            self.backbone,
            lora,
            self.task.head(self.backbone.spec.family),
            fit.seed,
            recompute=fit.gradient_checkpointing,
            frozen_bytes=fit.frozen_cache_bytes,
        )
        trainee.smoothing = fit.label_smoothing
        if folder is not None:
            load_weights(trainee, folder)
        return trainee

    def untrained(self, folder: Path) -> Path | None:
        """Write the start that training begins from: a head that knows nothing yet, or None, the bare backbone."""
        if self.task.head(self.backbone.spec.family) is None:
            return None
        trainee = self.trainee()
        write_weights(trainee, folder)
        trainee.release()
        self.seal(folder, {})
        return folder

    def seal(
        self,
        folder: Path,
        metrics: Metrics,
        intervals: Mapping[str, Interval] = MappingProxyType({}),
    ) -> Manifest:
        """Make a version of weights that were written to a folder."""
        backbone = self.backbone
        return seal(
            folder,
            task=self.task,
            spec=backbone.spec,
            metrics=metrics,
            intervals=intervals,
            data=self.inputs.fingerprints(),
            dtype=str(backbone.dtype).removeprefix("torch."),
            seed=self.config.fit.seed,
            parent=self.parent,
            quantization=backbone.quantization,
        )
