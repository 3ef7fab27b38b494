"""Scores of a bundle on a split, answered by the very engine that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from adapters.errors import HeadstockError
from adapters.runtime.engine import Engine
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Encoded
from adapters.tasks.catalog import AnyTask
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
) -> list[Prediction]:
    """Return the answer to each example, by the bundle in ``folder`` or, for None, the bare backbone.

    Texts that don't fit are cut, as a request with ``truncate`` would have it.
    """
    parameters = task.Parameters.model_validate({"truncate": True})
    limit = min(backbone.spec.max_tokens, task.options.max_tokens or backbone.spec.max_tokens)
    encoded = [task.encode(tokenizer, e.request, parameters, limit) for e in examples]
    generation = task.generation(tokenizer, parameters)
    rows = [
        Row(str(i), item.token_ids, None if folder is None else "bundle", generation)
        for i, item in enumerate(encoded)
    ]
    results = _run(backbone, folder, rows, on_progress)
    return [
        _answer(task, tokenizer, example, item, result)
        for example, item, result in zip(examples, encoded, results, strict=True)
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


def _answer(
    task: AnyTask, tokenizer: Tokenizer, example: Example, encoded: Encoded, result: RowResult
) -> Prediction:
    if result.error is not None:
        raise HeadstockError(f"Line {example.line} could not be answered: {result.error.message}")
    assert result.output is not None
    return task.postprocess(tokenizer, example.request, encoded, result.output)
