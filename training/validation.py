"""How good a trainee is in the middle of a fit: its loss and, where a head answers, its task's own metrics.

What takes a whole generation to answer is scored by its loss alone: generating in the middle of every fit would take
longer than the fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adapters.errors import InvalidData, InvalidRequest, TextTooLong
from adapters.tasks.base import Encoded, Labelled, RowOutput
from adapters.tasks.catalog import AnyTask
from adapters.tasks.metrics import Array, Tally
from adapters.tasks.room import row_room
from adapters.tokenizer import Tokenizer
from training.batches import fill_batches
from training.checkpoint import Score
from training.data import Example
from training.trainer import Trainee

_BATCH_TOKENS = 2048
_MOST_LOSS = 700.0  # e to a higher power is no number
_Rows = list[tuple[Example, list[Encoded], list[Labelled]]]


class Validation:
    """Validation rows, encoded once; those that can't be are left out."""

    def __init__(self, task: AnyTask, tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._examples = examples
        self._rows: _Rows | None = None

    def metrics(self, trainee: Trainee) -> dict[str, float]:
        """Return the mean loss of a label as ``loss``, and for a task with a head its metrics."""
        labelled = [row for _, _, rows in self._encoded(trainee) for row in rows]
        loss, outputs = _forward(trainee, labelled)
        if trainee.head is None:
            return {"loss": loss}
        return {"loss": loss, **self._score(outputs)}

    def written(self, trainee: Trainee) -> Tally:
        """Return the mean loss of a token of the right answers as ``loss``, and e to its power as ``perplexity``."""
        sums = [_row_loss(trainee, rows) for _, _, rows in self._encoded(trainee)]
        losses_N, labels_N = np.array(sums, np.float64).T

        def weigh(counts_RN: Array) -> dict[str, Array]:
            loss_R = (counts_RN @ losses_N) / np.maximum(1, counts_RN @ labels_N)
            return {"loss": loss_R, "perplexity": np.exp(np.minimum(loss_R, _MOST_LOSS))}

        return Tally(len(sums), weigh)

    def score(self, metrics: dict[str, float]) -> Score:
        """Return what to choose by, more being better: the primary metric if there is one, then minus the loss."""
        main = metrics.get(self._task.primary_metric)
        return (-metrics["loss"],) if main is None else (main, -metrics["loss"])

    def _encoded(self, trainee: Trainee) -> _Rows:
        if self._rows is None:
            self._rows = self._encode(trainee)
        if not self._rows:
            raise InvalidData(
                "No validation row fits the backbone. Shorten them, or leave data.validation out.",
                param="data.validation",
            )
        return self._rows

    def _encode(self, trainee: Trainee) -> _Rows:
        parameters = self._task.Parameters.model_validate({"truncate": True})
        room = row_room(self._task, trainee.backbone.spec, parameters)
        rows: _Rows = []
        for example in self._examples:
            try:
                parts = self._task.encode_parts(self._tokenizer, example.request, parameters, room)
                labelled = self._task.label_parts(self._tokenizer, parts, example.target)
            except (TextTooLong, InvalidData, InvalidRequest):
                continue
            rows.append((example, parts, labelled))
        return rows

    def _score(self, outputs: Sequence[RowOutput]) -> dict[str, float]:
        assert self._rows is not None
        answers, remaining = [], iter(outputs)
        for example, parts, _ in self._rows:
            own = [next(remaining) for _ in parts]
            answers.append(
                self._task.postprocess_parts(self._tokenizer, example.request, parts, own)
            )
        return self._task.score(answers, [example.target for example, _, _ in self._rows])


@torch.no_grad()
def _row_loss(trainee: Trainee, rows: Sequence[Labelled]) -> tuple[float, int]:
    """Return one example's summed loss and number of labels."""
    trainee.backbone.model.eval()
    batch = sorted(rows, key=lambda row: len(row.token_ids))
    loss, num_labels = trainee.loss_of(*trainee.hidden_states(batch), batch)
    return float(loss), num_labels


@torch.no_grad()
def _forward(trainee: Trainee, rows: Sequence[Labelled]) -> tuple[float, list[RowOutput]]:
    """Return the mean loss of a label, and each row's logits as the engine would give them."""
    trainee.backbone.model.eval()
    outputs: dict[int, RowOutput] = {}
    total, num_labels = 0.0, 0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].token_ids))
    for numbers in fill_batches(order, lambda i: len(rows[i].token_ids), _BATCH_TOKENS):
        batch = [rows[i] for i in numbers]
        hidden_TD, bounds = trainee.hidden_states(batch)
        loss, num = trainee.loss_of(hidden_TD, bounds, batch)
        total, num_labels = total + float(loss), num_labels + num
        if trainee.head is not None:
            outputs.update(zip(numbers, _outputs(trainee, hidden_TD, bounds), strict=True))
    return total / max(1, num_labels), [outputs[i] for i in range(len(outputs))]


def _outputs(trainee: Trainee, hidden_TD: Tensor, bounds: Tensor) -> list[RowOutput]:
    assert trainee.head is not None
    logits = trainee.head(hidden_TD, bounds).cpu()
    if trainee.head.spec.kind == "sequence":
        return [RowOutput(logits=row.numpy()) for row in logits]
    return [RowOutput(logits=row.numpy()) for row in logits.split(bounds.diff().tolist())]
