"""Task names to tasks; the only way in, for the trainer, the engine's callers and the command line."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from adapters.errors import InvalidRequest
from adapters.tasks.base import Task
from adapters.tasks.question_answering import QuestionAnswering
from adapters.tasks.regression import Regression
from adapters.tasks.summarization import Summarization
from adapters.tasks.text_classification import TextClassification
from adapters.tasks.text_generation import TextGeneration
from adapters.tasks.token_classification import TokenClassification
from adapters.tasks.translation import Translation
from adapters.validation import first_problem

AnyTask = Task[Any, Any, Any, Any]

TASKS: dict[str, type[AnyTask]] = {
    task.name: task
    for task in (
        TextClassification,
        Regression,
        TokenClassification,
        QuestionAnswering,
        Summarization,
        Translation,
        TextGeneration,
    )
}


def task_class(name: str) -> type[AnyTask]:
    """Return a task's class by its Hub name.

    Raises:
        InvalidRequest: there is no such task.
    """
    if name not in TASKS:
        raise InvalidRequest(f"No task '{name}'. Known: {', '.join(TASKS)}.", param="task")
    return TASKS[name]


def get_task(name: str, options: dict[str, Any]) -> AnyTask:
    """Return a task set up with its options.

    Raises:
        InvalidRequest: there is no such task, or an option is wrong.
    """
    cls = task_class(name)
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        message, param = first_problem(error)
        raise InvalidRequest(f"Options of '{name}': {message}", param=f"options.{param}") from error
