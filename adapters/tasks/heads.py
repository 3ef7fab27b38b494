"""The tensor side of the tasks: heads and losses, used by the engine and the trainer alike.

Shape letters: T tokens of a pack, B rows, D hidden size, O outputs of the head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear, mse_loss

from adapters.tasks.base import NO_LABEL, HeadSpec, Labelled


class Head(nn.Module):
    """A linear map from hidden states to logits, kept and applied in fp32 whatever the backbone's dtype."""

    def __init__(self, spec: HeadSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.outputs, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(spec.outputs, dtype=torch.float32))
        nn.init.normal_(self.weight, std=0.02)


class SequenceHead(Head):
    """One vector of logits a row, from its first, last or mean hidden state."""

    def forward(self, hidden_TD: Tensor, bounds: Tensor) -> Tensor:
        """Return ``[B, O]``; ``bounds`` are the B + 1 token borders of the rows."""
        return linear(self._pool(hidden_TD, bounds).float(), self.weight, self.bias)

    def _pool(self, hidden_TD: Tensor, bounds: Tensor) -> Tensor:
        if self.spec.pooling == "last":
            return hidden_TD[bounds[1:] - 1]
        if self.spec.pooling == "first":
            return hidden_TD[bounds[:-1]]
        rows = hidden_TD.float().split(bounds.diff().tolist())
        # Not index_add: on a CPU it sorts its indices in parallel, which takes longer than all the rest of a head.
        return torch.stack([row_TD.mean(0) for row_TD in rows])


class TokenHead(Head):
    """One vector of logits a token."""

    def forward(self, hidden_TD: Tensor, bounds: Tensor) -> Tensor:
        """Return ``[T, O]``."""
        return linear(hidden_TD.float(), self.weight, self.bias)


def build_head(spec: HeadSpec, hidden_size: int) -> Head:
    """Return a new head with small random weights (normal, std 0.02) and a zero bias."""
    kinds: dict[str, type[Head]] = {"sequence": SequenceHead, "token": TokenHead}
    return kinds[spec.kind](spec, hidden_size)


def row_loss(
    head: Head | None,
    language_head: Callable[[Tensor], Tensor],
    hidden_TD: Tensor,
    bounds: Tensor,
    rows: Sequence[Labelled],
    smoothing: float = 0.0,
) -> tuple[Tensor, int]:
    """Return the summed loss of a pack's rows and the number of labels in the sum.

    Squared error of a value; binary cross entropy of each label; cross entropy of the class, of each tag, of the
    start and end token among those that can be one, or of each completion token; vocabulary logits are made only
    where a label is.

    Args:
        smoothing: share of a label's weight that all its classes get alike (Szegedy et al., arXiv 1512.00567).
    """
    if head is None:
        return _completion_loss(language_head, hidden_TD, bounds, rows, smoothing)
    logits = head(hidden_TD, bounds)
    if rows[0].loss == "value":
        values = torch.tensor([row.labels for row in rows], device=logits.device)
        return mse_loss(logits, values, reduction="sum"), len(rows)
    if rows[0].loss == "labels":
        marks = torch.tensor([row.labels for row in rows], device=logits.device)
        loss = binary_cross_entropy_with_logits(logits, marks, reduction="sum")
        return loss, marks.numel()
    if rows[0].loss == "tags":
        return _tag_loss(logits, rows, smoothing)
    if head.spec.kind == "sequence":
        labels = torch.tensor([row.labels[0] for row in rows], device=logits.device)
        losses_B = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return losses_B @ torch.tensor([row.weight for row in rows], device=logits.device), len(
            rows
        )
    return _span_loss(logits, bounds, rows, smoothing), 2 * len(rows)


def _tag_loss(logits_TO: Tensor, rows: Sequence[Labelled], smoothing: float) -> tuple[Tensor, int]:
    labels_T = torch.tensor([label for row in rows for label in row.labels])
    loss = cross_entropy(
        logits_TO,
        labels_T.to(logits_TO.device),
        ignore_index=NO_LABEL,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return loss, int((labels_T != NO_LABEL).sum())


def _span_loss(
    logits_T2: Tensor, bounds: Tensor, rows: Sequence[Labelled], smoothing: float
) -> Tensor:
    losses = []
    for start, row in zip(bounds.tolist(), rows, strict=False):
        places = list(range(*row.read))
        if row.no_answer is not None:
            places.append(row.no_answer)
        read_2N = logits_T2[torch.tensor(places, device=logits_T2.device) + start].T
        labels = torch.tensor([places.index(int(label)) for label in row.labels])
        losses.append(
            cross_entropy(
                read_2N, labels.to(logits_T2.device), reduction="sum", label_smoothing=smoothing
            )
        )
    return torch.stack(losses).sum()


def _completion_loss(
    language_head: Callable[[Tensor], Tensor],
    hidden_TD: Tensor,
    bounds: Tensor,
    rows: Sequence[Labelled],
    smoothing: float,
) -> tuple[Tensor, int]:
    # The token before each label predicts it.
    places = [
        torch.arange(end - len(row.labels) - 1, end - 1)
        for end, row in zip(bounds[1:].tolist(), rows, strict=True)
    ]
    labels = torch.tensor([label for row in rows for label in row.labels])
    logits_NV = language_head(hidden_TD[torch.cat(places).to(hidden_TD.device)])
    labels = labels.to(logits_NV.device)
    loss = cross_entropy(logits_NV, labels, reduction="sum", label_smoothing=smoothing)
    return loss, len(labels)
