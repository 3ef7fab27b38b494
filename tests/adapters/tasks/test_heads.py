"""The losses of values, tags and spans against plain arithmetic, each row for itself."""

import pytest
import torch

from adapters.tasks.base import NO_LABEL, HeadSpec, Labelled
from adapters.tasks.heads import build_head, row_loss

LENGTHS = [2, 3, 4]
BOUNDS = torch.tensor([0, 2, 5, 9])


def loss_of(kind, outputs, rows, pooling="last"):
    torch.manual_seed(0)
    head = build_head(HeadSpec(kind=kind, outputs=outputs, pooling=pooling), 8)
    hidden = torch.randn(9, 8)
    loss, num = row_loss(head, lambda hidden: hidden, hidden, BOUNDS, rows)
    loss.backward()
    assert head.weight.grad.abs().sum() > 0
    return loss.item(), num, head(hidden, BOUNDS).detach()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_loss_of_values_is_their_squared_error(pooling):
    values = [0.5, -1.25, 3.0]
    rows = [
        Labelled([5] * n, [value], loss="value") for n, value in zip(LENGTHS, values, strict=True)
    ]
    loss, num, logits = loss_of("sequence", 1, rows, pooling)
    assert num == 3
    assert loss == pytest.approx(
        sum((float(x) - y) ** 2 for x, y in zip(logits, values, strict=True)), rel=1e-5
    )


@pytest.mark.parametrize("outputs", [2, 5])
def test_the_loss_of_tags_counts_only_tokens_that_carry_one(outputs):
    labels = [[NO_LABEL, 1], [0, NO_LABEL, NO_LABEL], [1, 1, NO_LABEL, 0]]
    rows = [Labelled([5] * len(each), each, loss="tags") for each in labels]
    loss, num, logits = loss_of("token", outputs, rows)
    flat = [label for each in labels for label in each]
    picked = [
        logits[i].log_softmax(0)[label].item() for i, label in enumerate(flat) if label != NO_LABEL
    ]
    assert num == len(picked) == 5
    assert loss == pytest.approx(-sum(picked), rel=1e-5)


def test_the_loss_of_a_span_chooses_among_readable_tokens_and_the_one_for_no_answer():
    torch.manual_seed(0)
    head = build_head(HeadSpec(kind="token", outputs=2), 8)
    hidden_TD, bounds = torch.randn(9, 8), torch.tensor([0, 4, 9])
    rows = [
        Labelled([1] * 4, [3, 3], (1, 3), no_answer=3),
        Labelled([1] * 5, [2, 3], (2, 4)),
    ]
    loss, num_labels = row_loss(head, lambda _: None, hidden_TD, bounds, rows)
    logits_T2 = head(hidden_TD, bounds)
    expected = -sum(
        logits_T2[places, side].log_softmax(0)[chosen[side]]
        for places, chosen in (([1, 2, 3], (2, 2)), ([6, 7], (0, 1)))
        for side in (0, 1)
    )
    assert num_labels == 4
    torch.testing.assert_close(loss, expected)
