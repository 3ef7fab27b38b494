"""One run from config to sealed bundle: data, gate, fit, evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
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
from adapters.bundle import load_bundle
from adapters.device import find_device
from adapters.errors import InvalidRequest
from adapters.tasks.base import Labelled
from adapters.tasks.catalog import AnyTask, get_task
from adapters.tasks.metrics import Tally
from adapters.tensors import canonical_digest
from adapters.tokenizer import Tokenizer, load_tokenizer
from training.auto import FitPlan
from training.baselines import baselines
from training.checkpoint import Score
from training.checks import adapter_findings
from training.contract import (
    BUNDLE_NAME,
    CHECKPOINT_NAME,
    PREDICTIONS_NAME,
    UNTRAINED_NAME,
    EventKind,
    RunConfig,
    RunResult,
)
from training.data import Example
from training.estimate import estimate_run, find_estimate, peak_bytes
from training.evaluation import Prediction, predict, read_answers
from training.events import EventLog, Pace
from training.export import write_weights
from training.fitting import Fit, Hooks, paused
from training.inputs import Inputs
from training.resampling import Interval, intervals, row_scores
from training.setup import Metrics, Setup
from training.trainer import Trainee
from training.validation import Validation
from training.verdict import lost_to_baselines, lost_weights, take_witness, unchanged_weights
from training.world import World


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
        self._intervals: dict[str, Interval] = {}
        self._calibration: dict[str, float] = {}

    def execute(self) -> RunResult | None:
        """Do what the config says, and return what came of it; None in a process that only helped another to fit.

        Raises:
            RunPaused: SIGTERM came.
            HeadstockError: the config, the data or a bundle is at fault.
        """
        with self.log.stage("backbone", f"Loading backbone {self.config.backbone}"):
            folder = find_backbone(self.config.backbone, self.home)
            spec = describe_backbone(folder, backbone_name(self.config.backbone))
            device = find_device(self.config.device, int(os.environ.get("LOCAL_RANK", "0")))
            backbone = load_backbone(spec, self.config.dtype, home=self.home, device=device)
            tokenizer = load_tokenizer(folder)
        if self.config.action == "evaluate":
            return self._evaluate_bundle(backbone, tokenizer)
        setup = Setup(self.config, self.inputs, backbone, tokenizer, self.log)
        if self.config.action == "estimate":
            return self._estimate(setup)
        return self._train(setup)

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
        for finding in adapter_findings(test, task.options):
            self.inputs.report.findings.append(finding)
            if finding.level == "warning":
                self.log.emit(EventKind.WARNING, finding.message)
        self.inputs.report.validate_data()
        metrics = self._test("after", task, backbone, tokenizer, folder)
        metrics |= baselines(task, [], test)
        return RunResult(
            task=task.name,
            primary_metric=task.primary_metric,
            digest=bundle.digest,
            metrics=metrics,
            intervals=self._intervals,
            num_test_rows=len(test),
            seconds=self.log.seconds,
        )

    def _estimate(self, setup: Setup) -> RunResult:
        with self.log.stage("estimate", "Measuring some steps and answers"):
            estimate = estimate_run(setup, self.out, sum(self.log.seconds.values()))
        task = setup.task
        return RunResult(task=task.name, primary_metric=task.primary_metric, estimate=estimate)

    def _train(self, setup: Setup) -> RunResult | None:
        world = World(setup.backbone.device)
        test = self.inputs.test
        rows = setup.rows()
        setup.check_answerable()
        metrics: Metrics = {}
        if test and self.config.evaluate_untrained:
            metrics |= world.once(lambda: self._test_untrained(setup))
        trainee = setup.trainee()
        fitted = self._fit(trainee, rows, setup, world)
        if world.rank:
            return None
        folder = self.out / BUNDLE_NAME
        write_weights(trainee, folder)
        problems = [*unchanged_weights(trainee)]
        witness, has_head = take_witness(trainee, rows), trainee.head is not None
        written = self._perplexity(setup, trainee) if test and not has_head else None
        trainee.release()
        # Sealed again after each of the next two: the engine takes sealed bundles only. Metrics are not in the digest.
        manifest = setup.seal(folder, metrics)
        if self.inputs.validation:
            metrics |= self._calibrate(setup, folder)
            manifest = setup.seal(folder, metrics)
        if test:
            metrics |= self._test("after", setup.task, setup.backbone, setup.tokenizer, folder)
            if written is not None:
                metrics["after"] |= written.metrics()
                self._intervals |= intervals(written)
            metrics |= baselines(setup.task, self.inputs.splits.train, test)
            manifest = setup.seal(folder, metrics, self._intervals)
        problems += lost_weights(witness, setup.backbone, folder, has_head)
        problems += self._lost(setup.task, metrics)
        return RunResult(
            task=setup.task.name,
            primary_metric=setup.task.primary_metric,
            digest=manifest.digest,
            problems=problems,
            metrics=metrics,
            intervals=self._intervals,
            calibration=self._calibration,
            data=self.inputs.report,
            num_train_rows=fitted.num_rows,
            num_test_rows=len(test),
            num_tokens=fitted.num_tokens,
            auto=asdict(fitted.plan),
            best_step=fitted.best_step,
            seconds=self.log.seconds,
            peak_bytes=peak_bytes(setup.backbone.device),
            estimate=find_estimate(self.out, self.config),
        )

    def _test_untrained(self, setup: Setup) -> Metrics:
        untrained = setup.untrained(self.out / UNTRAINED_NAME)
        return self._test("before", setup.task, setup.backbone, setup.tokenizer, untrained)

    def _perplexity(self, setup: Setup, trainee: Trainee) -> Tally:
        """Read the right answers to the test rows: loss and perplexity."""
        rows = self.inputs.test
        with self.log.stage("perplexity", f"Reading the answers of {len(rows)} test rows"):
            return Validation(setup.task, setup.tokenizer, rows).written(trainee)

    def _lost(self, task: AnyTask, metrics: Metrics) -> Iterator[str]:
        """Yield the baselines that were not beaten, on validation rows or, without them, test rows."""
        rows, split = self.inputs.validation, "validation"
        if not rows:
            rows, split = self.inputs.test, "after"
        if rows:
            simple = task.baselines([e.request for e in rows], [e.target for e in rows])
            name = "test" if split == "after" else split
            if name == "test" and task.head("decoder") is None and self.config.parent is None:
                simple |= {whose: found for whose, found in metrics.items() if whose == "before"}
            yield from lost_to_baselines(task, name, metrics[split], simple)

    def _calibrate(self, setup: Setup, folder: Path) -> Metrics:
        """Let the validation rows decide what is theirs to decide, such as a threshold; returns their metrics."""
        rows, tokenizer = self.inputs.validation, setup.tokenizer
        progress = self.log.progress("calibrate", len(rows))
        with self.log.stage("calibrate", f"Calibrating on {len(rows)} validation rows"):
            _, observed = predict(
                setup.backbone, setup.task, tokenizer, folder, rows, progress.update
            )
            targets = [row.target for row in rows]
            before = setup.task.score(read_answers(setup.task, tokenizer, observed), targets)
            setup.task = get_task(setup.task.name, setup.task.calibrated(tokenizer, observed))
            after = setup.task.score(read_answers(setup.task, tokenizer, observed), targets)
        self._calibration = {f"{name}_before": value for name, value in before.items()}
        self._calibration |= {
            name: value
            for name, value in setup.task.options.model_dump().items()
            if name in ("temperature", "no_answer_threshold") and value is not None
        }
        return {"validation": after}

    def _fit(self, trainee: Trainee, rows: list[Labelled], setup: Setup, world: World) -> Fitted:
        plan = setup.plan(rows)
        batches = setup.batches(plan, rows)
        used = [row for batch in batches for row in batch]
        fit = Fit(
            trainee,
            batches,
            self.config.fit,
            plan.learning_rate,
            checkpoint=self.out / CHECKPOINT_NAME,
            run_digest=self._digest(setup, rows, batches),
            translations=self.inputs.translations,
            world=world,
        )
        fit.hooks = Hooks(
            should_pause=lambda: self._stop,
            on_step=self._teller(fit.num_steps),
            score=self._scorer(trainee, setup),
        )
        numbers = ", ".join(f"{name} {value:g}" for name, value in asdict(plan).items())
        dtype = str(setup.backbone.dtype).removeprefix("torch.")
        told = (
            f"Training on {len(used)} rows, {fit.num_steps} steps ({numbers}, dtype {dtype}, at most "
            f"{setup.max_row_tokens} tokens a row)"
        )
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

    def _scorer(self, trainee: Trainee, setup: Setup) -> Callable[[int], Score] | None:
        """Return what scores the trainee after a step; None without validation rows."""
        if not self.inputs.validation:
            return None
        validation = Validation(setup.task, setup.tokenizer, self.inputs.validation)

        def score(step: int) -> Score:
            found = validation.metrics(trainee)
            told = f"validation after step {step}: {found}"
            self.log.emit(
                EventKind.METRICS, told, of="fit", split="validation", step=step, metrics=found
            )
            return validation.score(found)

        return score

    def _digest(self, setup: Setup, rows: list[Labelled], batches: list[list[Labelled]]) -> str:
        """Return what a checkpoint must have in common with a run: what lies where may differ on another machine."""
        config = self.config.model_dump(
            mode="json", exclude={"data": {"train", "validation", "test"}}
        )
        config |= {"backbone": setup.backbone.spec.fingerprint, "parent": setup.parent}
        examples = [[row.token_ids, row.labels] for row in rows]
        # Rows once and their order by number, for they come again in every epoch.
        numbers = {id(row): number for number, row in enumerate(rows)}
        order = [[numbers[id(row)] for row in batch] for batch in batches]
        return canonical_digest([config, self.inputs.fingerprints(), examples, order])

    def _test(
        self,
        whose: str,
        task: AnyTask,
        backbone: Backbone,
        tokenizer: Tokenizer,
        folder: Path | None,
    ) -> Metrics:
        test = self.inputs.test
        progress = self.log.progress(f"test {whose}", len(test))
        with self.log.stage(f"test {whose}", f"Testing on {len(test)} rows, {whose} training"):
            answers, _ = predict(backbone, task, tokenizer, folder, test, progress.update)
        tally = task.tally(answers, [example.target for example in test])
        scores = tally.metrics()
        if whose == "after":
            self._intervals = intervals(tally)
            scores_N = _row_scores(task, tally, test, answers)
            _write_predictions(self.out / PREDICTIONS_NAME, test, answers, scores_N)
        self.log.emit(
            EventKind.METRICS, f"{whose}: {scores}", of=whose, split="test", metrics=scores
        )
        return {whose: scores}


def _row_scores(
    task: AnyTask, tally: Tally, test: list[Example], answers: list[Prediction]
) -> list[float]:
    """Return how good each answer is by itself, more being better."""
    if task.primary_metric == "pearson":  # one row does not correlate
        scores: list[float] = [e.target.model_dump()["score"] for e in test]
        return [-abs(a["score"] - score) for a, score in zip(answers, scores, strict=True)]
    return row_scores(tally, task.primary_metric)


def _write_predictions(
    path: Path, test: list[Example], answers: list[Prediction], scores: list[float]
) -> None:
    lines: list[dict[str, Any]] = [
        {
            "line": e.line,
            **e.request.model_dump(),
            **e.target.model_dump(),
            "prediction": answer,
            "row_metric": round(score, 6),
        }
        for e, answer, score in zip(test, answers, scores, strict=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
