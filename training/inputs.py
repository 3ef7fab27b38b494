"""What a run reads before anything heavy is loaded: its task, its examples, and what the gate says of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest
from adapters.imports import many_imports
from adapters.tasks.catalog import AnyTask, get_task, task_class
from training.augmentation import augmented, translated
from training.class_weights import balanced
from training.contract import DataSettings, EventKind, RunConfig
from training.data import Example, fingerprint, load_examples
from training.events import EventLog
from training.findings import Report
from training.gate import check_data
from training.kept import kept_translations
from training.splits import Splits


@dataclass(frozen=True, slots=True)
class Inputs:
    """A run's examples, and the task set up as far as config and data decide it.

    ``task`` is None where a bundle decides it: one to evaluate, or a parent to go on from. ``train`` holds augmented
    copies as well, ``splits`` what the files hold. ``translations`` are the texts of back-translation, if any.
    """

    task: AnyTask | None
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    report: Report
    splits: Splits
    translations: list[str] = field(default_factory=list)

    def fingerprints(self) -> dict[str, str]:
        """Return a SHA-256 of each split as the files hold it, and of the training rows with their copies."""
        prints = {name: fingerprint(rows) for name, rows in self.splits.parts().items()}
        if len(self.train) > len(self.splits.train):
            prints["train_augmented"] = fingerprint(self.train)
        return prints


def read_inputs(config: RunConfig, log: EventLog, checkpoint: Path | None = None) -> Inputs:
    """Read a run's files and check them; warnings go to the log.

    Args:
        checkpoint: where the run's is, if it goes on: texts that a server translated are in it; None if it can't.

    Raises:
        InvalidRequest: the config names no such task or file, or a task option is wrong.
        InvalidData: a line is bad, or training on the data can't work.
    """
    cls = task_class(config.task)
    if config.action == "evaluate":
        return _test_only(config)
    checked = check_data(config.data, config.task)
    for warning in checked.report.warnings():
        log.emit(EventKind.WARNING, warning)
    checked.report.validate_data()
    splits = checked.splits
    task = _task(config, cls, splits.train)
    translations = _translations(splits.train, config, checkpoint)
    return Inputs(
        task,
        _prepared(splits.train, config.data, translations, log),
        splits.validation,
        splits.test,
        checked.report,
        splits,
        translations,
    )


def _test_only(config: RunConfig) -> Inputs:
    data = config.data
    if not (data.test and config.bundle):
        raise InvalidRequest("To evaluate, set data.test and bundle.", param="bundle")
    rows = load_examples(
        data.test, config.task, columns=data.columns, class_names=data.class_names
    )[: data.max_test_rows]
    return Inputs(None, [], [], rows, Report(task=config.task), Splits([], [], rows))


def _prepared(
    train: list[Example], data: DataSettings, translations: list[str], log: EventLog
) -> list[Example]:
    """Return the training rows with their copies and weights."""
    if data.augmentation:
        copies = augmented(train, data.augmentation, translations)
        log.emit(EventKind.STAGE, f"Added {len(copies)} changed copies", stage="augmentation")
        train = train + copies
    return balanced(train) if data.class_weights == "balanced" else train


def _translations(train: list[Example], config: RunConfig, checkpoint: Path | None) -> list[str]:
    """Return the texts as they come back from another language, the same in all processes of a fit and whenever it
    goes on: a server need not translate twice alike.
    """
    settings = config.data.augmentation and config.data.augmentation.back_translation
    if not settings:
        return []

    def ask() -> list[str]:
        return kept_translations(checkpoint) or translated(train, settings)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ask()
    with many_imports():
        import torch

        from training.world import World
    return World(torch.device(config.device)).once(ask)


def _task(config: RunConfig, cls: type[AnyTask], train: list[Example]) -> AnyTask | None:
    if config.parent is not None:
        if config.data.stop_words:
            raise InvalidRequest(
                f"data.stop_words is '{config.data.stop_words}', but the parent decides what is left out of texts. "
                "Leave it unset.",
                param="data.stop_words",
            )
        return None
    return get_task(config.task, cls.options_from(_options(config, cls), [e.target for e in train]))


def _options(config: RunConfig, cls: type[AnyTask]) -> dict[str, Any]:
    stop_words = config.data.stop_words
    if stop_words is None:
        return config.options
    if "stop_words" not in cls.Options.model_fields:
        raise InvalidRequest(
            f"data.stop_words is '{stop_words}', but '{cls.name}' needs its texts whole. Leave it unset; "
            "text-classification and regression can do without stop words.",
            param="data.stop_words",
        )
    return {**config.options, "stop_words": stop_words}
