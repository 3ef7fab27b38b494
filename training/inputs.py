"""What a run reads before anything heavy is loaded: its task, its examples, and what the gate says of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.errors import InvalidRequest
from adapters.tasks.catalog import AnyTask, get_task, task_class
from training.contract import EventKind, RunConfig
from training.data import Example, fingerprint, load_examples
from training.events import EventLog
from training.gate import check_examples


@dataclass(frozen=True, slots=True)
class Inputs:
    """A run's examples, and the task set up as far as config and data decide it.

    ``task`` is None where a bundle decides it: one to evaluate, or a parent to go on from.
    """

    task: AnyTask | None
    train: list[Example]
    test: list[Example]
    validation: list[Example] = field(default_factory=list)

    def fingerprints(self) -> dict[str, str]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: fingerprint(rows) for name, rows in parts.items() if rows}


def read_inputs(config: RunConfig, log: EventLog) -> Inputs:
    """Read a run's files and check them; warnings go to the log.

    Raises:
        InvalidRequest: the config names no such task or file, or a task option is wrong.
        InvalidData: a line is bad, or training on the data can't work.
    """
    cls = task_class(config.task)
    if config.action == "evaluate":
        if not (config.data.test and config.bundle):
            raise InvalidRequest("To evaluate, set data.test and bundle.", param="bundle")
        return Inputs(
            None, [], load_examples(config.data.test, config.task)[: config.data.max_test_rows]
        )
    if not config.data.train:
        raise InvalidRequest("No training file. Set data.train.", param="data.train")
    train = load_examples(config.data.train, config.task)
    test = load_examples(config.data.test, config.task) if config.data.test else []
    validation = (
        load_examples(config.data.validation, config.task) if config.data.validation else []
    )
    for warning in check_examples(train, test):
        log.emit(EventKind.WARNING, warning)
    task = _task(config, cls, train)
    return Inputs(task, train, test[: config.data.max_test_rows], validation)


def _task(config: RunConfig, cls: type[AnyTask], train: list[Example]) -> AnyTask | None:
    if config.parent is not None:
        return None
    options = cls.options_from(config.options, [example.target for example in train])
    return get_task(config.task, options)
