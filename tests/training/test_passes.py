"""One pass of a fit: what fills a pack up changes nothing for the rows that are read."""

import pytest
import torch

from adapters.backbone import load_backbone
from adapters.runtime.gradient_kernels import GradientKernels
from adapters.runtime.kernels import load_kernels
from adapters.tasks.base import Labelled
from training.passes import run_packed


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_large_batches_are_filled_up_by_more_tokens_than_a_row_has_positions(family, request):
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("no C compiler on this machine")
    backbone = load_backbone(request.getfixturevalue(f"{family}_spec"), "float32")
    rows = [Labelled([5 + i % 90 for i in range(200)], [0])] * 41  # 8,200 tokens, 504 more
    with torch.no_grad():
        plain, filled = (
            run_packed(backbone, rows, GradientKernels(kernels), fills=fills)[0]
            for fills in (False, True)
        )
    torch.testing.assert_close(filled, plain)
