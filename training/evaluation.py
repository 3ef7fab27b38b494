"""Scores of a bundle on a split, answered by the very engine that serves it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone, BackboneSpec
from adapters.errors import HeadstockError, InvalidData, InvalidRequest, TextTooLong
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Encoded, Observation
from adapters.tasks.catalog import AnyTask
from adapters.tasks.room import row_room
from adapters.tokenizer import Tokenizer
from training.data import Example

Prediction = dict[str, Any]


def predict(
    backbone: Backbone,
    task: AnyTask,
    tokenizer: Tokenizer,
    folder: Path | None,
    examples: Sequence[Example],
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Prediction], list[Observation]]:
    """Return the answer to each example, by the bundle in ``folder`` or, for None, the bare backbone.

    Beside the answers stands what they were read from, for `Task.calibrated` and `read_answers`. Texts that don't
    fit are cut, as a request with ``truncate`` would have it.

    Args:
        on_progress: told the number of finished examples after each step of the engine.
    """
    parameters = task.Parameters.model_validate({"truncate": True})
    parts = encode_all(task, tokenizer, backbone.spec, examples)
    generation = task.generation(tokenizer, parameters)
    rows = [
        Row(f"{i}.{j}", part.token_ids, None if folder is None else "bundle", generation)
        for i, each in enumerate(parts)
        for j, part in enumerate(each)
    ]
    results = _run(
        backbone, folder, rows, lambda done: on_progress(done * len(examples) // len(rows))
    )
    remaining = iter(results)
    observed = [
        _observation(example, each, list(itertools.islice(remaining, len(each))))
        for example, each in zip(examples, parts, strict=True)
    ]
    return read_answers(task, tokenizer, observed), observed


def encode_all(
    task: AnyTask, tokenizer: Tokenizer, spec: BackboneSpec, examples: Sequence[Example]
) -> list[list[Encoded]]:
    """Return each example's rows, cut where they don't fit.

    Raises:
        InvalidData: cutting does not help, for what is too long is not what may be cut.
    """
    parameters = task.Parameters.model_validate({"truncate": True})
    room = row_room(task, spec, parameters)
    encoded = []
    for example in examples:
        try:
            encoded.append(task.encode_parts(tokenizer, example.request, parameters, room))
        except (TextTooLong, InvalidRequest) as error:
            raise InvalidData(
                f"Line {example.line} can't be answered: {error.message}", param=error.param
            ) from error
    return encoded


def read_answers(
    task: AnyTask, tokenizer: Tokenizer, observed: Sequence[Observation]
) -> list[Prediction]:
    """Return the answers in what an engine gave, such as by a task with other options than it ran with."""
    return [
        task.postprocess_parts(tokenizer, each.request, each.parts, each.outputs)
        for each in observed
    ]


def _run(
    backbone: Backbone,
    folder: Path | None,
    rows: Sequence[Row],
    on_progress: Callable[[int], None],
) -> list[RowResult]:
    def fetch(_: str) -> Path:
        assert folder is not None
        return folder

    engine = Engine(backbone, fetch)
    try:
        return engine.run(rows, on_progress)
    finally:
        engine.close()


def _observation(
    example: Example, parts: list[Encoded], results: Sequence[RowResult]
) -> Observation:
    for result in results:
        if result.error is not None:
            raise HeadstockError(
                f"Line {example.line} could not be answered: {result.error.message}"
            )
    outputs = [result.output for result in results if result.output is not None]
    return Observation(example.request, example.target, parts, outputs)
