"""One run from config to sealed bundle: data, gate, fit, evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters.backbone import (
    Backbone,
    backbone_name,
    describe_backbone,
    find_backbone,
    load_backbone,
)
from adapters.bundle import Manifest, load_bundle
from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import Labelled
from adapters.tasks.catalog import AnyTask, get_task
from adapters.tasks.room import row_room
from adapters.tensors import canonical_digest
from adapters.tokenizer import Tokenizer, load_tokenizer
from training.auto import FitPlan, plan_fit
from training.batches import make_batches
from training.checkpoint import Score
from training.contract import (
    BUNDLE_NAME,
    CHECKPOINT_NAME,
    PREDICTIONS_NAME,
    EventKind,
    RunConfig,
    RunResult,
)
from training.data import Example
from training.evaluation import Prediction, predict
from training.events import EventLog, Pace
from training.export import (
    check_parent,
    load_weights,
    lora_settings_of,
    seal,
    write_weights,
)
from training.fitting import Fit, Hooks, paused
from training.gate import check_examples
from training.inputs import Inputs
from training.trainer import Trainee, build_trainee
from training.validation import Validation
from training.world import World

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was trained on, a row counting once an epoch, with which numbers, and the step that was best."""

    num_rows: int
    num_tokens: int
    plan: FitPlan
    best_step: int | None


class Run:
    """A run in progress: what its steps share.

    Args:
        out: the run's own folder; checkpoint, bundle and predictions go there.
        home: where prepared backbones are kept.
    """

    def __init__(
        self, config: RunConfig, inputs: Inputs, out: Path, home: Path, log: EventLog
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.out = out
        self.home = home
        self.log = log
        self._stop = False
        self._is_fitting = False

    def execute(self) -> RunResult | None:
        """Do what the config says, and return what came of it; None in a process that only helped another to fit.

        Raises:
            RunPaused: SIGTERM came.
            HeadstockError: the config, the data or a bundle is at fault.
        """
        with self.log.stage("backbone", f"Loading backbone {self.config.backbone}"):
            folder = find_backbone(self.config.backbone, self.home)
            spec = describe_backbone(folder, backbone_name(self.config.backbone))
            backbone = load_backbone(spec, self.config.dtype, home=self.home)
            tokenizer = load_tokenizer(folder)
        if self.config.action == "evaluate":
            return self._evaluate_bundle(backbone, tokenizer)
        return self._train(backbone, tokenizer)

    def pause(self, *_: object) -> None:
        """Stop: after the step that a fit is in, with a checkpoint; anywhere else at once.

        A signal handler; what was fitted before lies in the checkpoint.
        """
        self._stop = True
        if not self._is_fitting:
            raise paused()

    def _evaluate_bundle(self, backbone: Backbone, tokenizer: Tokenizer) -> RunResult:
        test = self.inputs.test
        folder = Path(str(self.config.bundle))
        bundle = load_bundle(folder, backbone.spec)
        task = bundle.task()
        if task.name != self.config.task:
            raise InvalidRequest(
                f"The bundle is a '{task.name}' adapter, not '{self.config.task}'.", param="task"
            )
        metrics = self._test("after", task, backbone, tokenizer, folder, test)
        metrics |= _baselines(task, test)
        return RunResult(
            task=task.name,
            primary_metric=task.primary_metric,
            digest=bundle.digest,
            metrics=metrics,
            num_test_rows=len(test),
            seconds=self.log.seconds,
        )

    def _train(self, backbone: Backbone, tokenizer: Tokenizer) -> RunResult | None:
        task, parent = self._task(backbone)
        world = World(backbone.device)
        test = self.inputs.test
        rows = self._encode(task, tokenizer, backbone)
        metrics: Metrics = {}
        if test and self.config.evaluate_untrained and world.rank == 0:
            metrics |= self._test_untrained(task, backbone, tokenizer)
        trainee = self._build(task, backbone)
        fitted = self._fit(trainee, rows, task, tokenizer, world)
        if world.rank:
            return None
        folder = self.out / BUNDLE_NAME
        write_weights(trainee, folder)
        trainee.release()
        # Sealed again after each of the next two: the engine takes sealed bundles only. Metrics are not in the digest.
        manifest = self._seal(folder, task, backbone, metrics, parent)
        if self.inputs.validation:
            task = self._calibrated(task, backbone, tokenizer, folder)
            manifest = self._seal(folder, task, backbone, metrics, parent)
        if test:
            metrics |= self._test("after", task, backbone, tokenizer, folder, test)
            metrics |= _baselines(task, test)
            manifest = self._seal(folder, task, backbone, metrics, parent)
        return RunResult(
            task=task.name,
            primary_metric=task.primary_metric,
            digest=manifest.digest,
            metrics=metrics,
            num_train_rows=fitted.num_rows,
            num_test_rows=len(test),
            num_tokens=fitted.num_tokens,
            auto=asdict(fitted.plan),
            best_step=fitted.best_step,
            seconds=self.log.seconds,
        )

    def _seal(
        self,
        folder: Path,
        task: AnyTask,
        backbone: Backbone,
        metrics: Metrics,
        parent: str | None,
    ) -> Manifest:
        return seal(
            folder,
            task=task,
            spec=backbone.spec,
            metrics=metrics,
            data=self.inputs.fingerprints(),
            dtype=str(backbone.dtype).removeprefix("torch."),
            seed=self.config.fit.seed,
            parent=parent,
            quantization=backbone.quantization,
        )

    def _calibrated(
        self, task: AnyTask, backbone: Backbone, tokenizer: Tokenizer, folder: Path
    ) -> AnyTask:
        """Return the task with what the validation rows decide, such as a threshold."""
        rows = self.inputs.validation
        progress = self.log.progress("calibrate", len(rows))
        with self.log.stage("calibrate", f"Calibrating on {len(rows)} validation rows"):
            _, observed = predict(backbone, task, tokenizer, folder, rows, progress.update)
            return get_task(task.name, task.calibrated(tokenizer, observed))

    def _task(self, backbone: Backbone) -> tuple[AnyTask, str | None]:
        """Return the task and, if the run goes on from a parent, the parent's digest."""
        if self.config.parent is None:
            task = self.inputs.task
            assert task is not None
            if backbone.spec.family not in task.families:
                raise InvalidRequest(
                    f"'{task.name}' writes text, which an {backbone.spec.family} such as "
                    f"'{backbone.spec.name}' can't. Choose a decoder with --backbone.",
                    param="backbone",
                )
            return task, None
        manifest = check_parent(Path(self.config.parent), backbone.spec, self.config.task)
        return get_task(manifest.task, manifest.options), manifest.digest

    def _encode(self, task: AnyTask, tokenizer: Tokenizer, backbone: Backbone) -> list[Labelled]:
        """Return the rows to train on; those that are too long are left out, and counted."""
        parameters = task.Parameters.model_validate({})
        fits = row_room(task, backbone.spec, parameters)
        limit = self.config.data.max_row_tokens or fits
        rows: list[Labelled] = []
        kept: list[Example] = []
        for example in self.inputs.train:
            try:
                parts = task.encode_parts(tokenizer, example.request, parameters, fits)
                labelled = task.label_parts(tokenizer, parts, example.target)
            except TextTooLong:
                continue
            except (InvalidData, InvalidRequest) as error:
                raise InvalidData(
                    f"Line {example.line}: {error.message}", param=error.param
                ) from error
            if all(len(row.token_ids) <= limit for row in labelled):
                rows += labelled
                kept.append(example)
        if len(kept) < len(self.inputs.train):
            left_out = len(self.inputs.train) - len(kept)
            self.log.emit(
                EventKind.WARNING, f"{left_out} rows of more than {limit} tokens left out."
            )
            check_examples(kept)  # what is left must still be enough to learn from
        return rows

    def _build(self, task: AnyTask, backbone: Backbone) -> Trainee:
        lora, head, fit = self.config.lora, task.head(backbone.spec.family), self.config.fit
        recompute = fit.gradient_checkpointing
        folder = None if self.config.parent is None else Path(self.config.parent)
        if folder is not None:
            lora = lora_settings_of(folder)
        trainee = build_trainee(backbone, lora, head, fit.seed, recompute=recompute)
        trainee.smoothing = fit.label_smoothing
        if folder is not None:
            load_weights(trainee, folder)
        return trainee

    def _fit(
        self,
        trainee: Trainee,
        rows: list[Labelled],
        task: AnyTask,
        tokenizer: Tokenizer,
        world: World,
    ) -> Fitted:
        settings = self.config.fit
        if settings.label_smoothing and rows[0].loss == "value":
            raise InvalidRequest(
                f"fit.label_smoothing '{settings.label_smoothing}' is for classes and tokens; '{task.name}' learns "
                "values. Leave it out.",
                param="fit.label_smoothing",
            )
        plan = plan_fit(settings, rows, trainee.backbone.spec.hidden_size)
        batches = make_batches(
            rows,
            plan.batch_tokens,
            seed=settings.seed,
            epochs=plan.epochs,
            max_tokens=settings.max_tokens,
        )
        used = [row for batch in batches for row in batch]
        fit = Fit(
            trainee,
            batches,
            settings,
            plan.learning_rate,
            checkpoint=self.out / CHECKPOINT_NAME,
            run_digest=self._digest(used),
            world=world,
        )
        fit.hooks = Hooks(
            should_pause=lambda: self._stop,
            on_step=self._teller(fit.num_steps),
            score=self._scorer(trainee, task, tokenizer),
        )
        numbers = ", ".join(f"{name} {value:g}" for name, value in asdict(plan).items())
        told = f"Training on {len(used)} rows, {fit.num_steps} steps ({numbers})"
        with self.log.stage("fit", told):
            self._is_fitting = True
            state = fit.run()
            self._is_fitting = False
        if self._stop:
            raise paused()
        num_tokens = sum(len(row.token_ids) for row in used)
        return Fitted(len(used), num_tokens, plan, state.best_step if state.best else None)

    def _teller(self, num_steps: int) -> Callable[[int, dict[str, Any]], None]:
        """Return what tells of each step: how far the fit is, at which pace, and its loss."""
        progress, pace = self.log.progress("fit", num_steps), Pace()

        def tell(step: int, data: dict[str, Any]) -> None:
            paces = pace.update(data["rows"], data["tokens"])
            progress.update(step, loss=data["loss"], learning_rate=data["learning_rate"], **paces)

        return tell

    def _scorer(
        self, trainee: Trainee, task: AnyTask, tokenizer: Tokenizer
    ) -> Callable[[int], Score] | None:
        """Return what scores the trainee after a step; None without validation rows."""
        if not self.inputs.validation:
            return None
        validation = Validation(task, tokenizer, self.inputs.validation)

        def score(step: int) -> Score:
            found = validation.metrics(trainee)
            told = f"validation after step {step}: {found}"
            self.log.emit(
                EventKind.METRICS, told, of="fit", split="validation", step=step, metrics=found
            )
            return validation.score(found)

        return score

    def _digest(self, rows: list[Labelled]) -> str:
        config = self.config.model_dump(mode="json")
        return canonical_digest([config, [[row.token_ids, row.labels] for row in rows]])

    def _test_untrained(self, task: AnyTask, backbone: Backbone, tokenizer: Tokenizer) -> Metrics:
        """Test the start that training begins from: the bare backbone, or with a head that knows nothing yet."""
        folder = None
        if task.head(backbone.spec.family) is not None:
            folder = self.out / "untrained"
            trainee = self._build(task, backbone)
            write_weights(trainee, folder)
            trainee.release()
            self._seal(folder, task, backbone, {}, None)
        return self._test("before", task, backbone, tokenizer, folder, self.inputs.test)

    def _test(
        self,
        whose: str,
        task: AnyTask,
        backbone: Backbone,
        tokenizer: Tokenizer,
        folder: Path | None,
        test: list[Example],
    ) -> Metrics:
        progress = self.log.progress(f"test {whose}", len(test))
        with self.log.stage(f"test {whose}", f"Testing on {len(test)} rows, {whose} training"):
            answers, _ = predict(backbone, task, tokenizer, folder, test, progress.update)
        if whose == "after":
            _write_predictions(self.out / PREDICTIONS_NAME, test, answers)
        scores = task.score(answers, [example.target for example in test])
        self.log.emit(
            EventKind.METRICS, f"{whose}: {scores}", of=whose, split="test", metrics=scores
        )
        return {whose: scores}


def _baselines(task: AnyTask, test: list[Example]) -> Metrics:
    return task.baselines([e.request for e in test], [e.target for e in test])


def _write_predictions(path: Path, test: list[Example], answers: list[Prediction]) -> None:
    lines: list[dict[str, Any]] = [
        {"line": e.line, **e.request.model_dump(), **e.target.model_dump(), "prediction": answer}
        for e, answer in zip(test, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
