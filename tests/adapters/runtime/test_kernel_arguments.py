"""What a kernel would read or write wrongly is refused where it is called, for C looks at nothing but addresses."""

import pytest
import torch

from adapters.runtime.gradient_kernels import Attending, GradientKernels
from adapters.runtime.kernels import fits_attention, to_panels
from adapters.runtime.spans import Reads, Span, join_spans

WIDE, NARROW = torch.float32, torch.bfloat16
SPANS = join_spans([Span(0, 3, 3, [0])])
READS = Reads(1, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32))
HOW = Attending(torch.tensor([0, 3]), 3, 1.0, True)


def zeros(*shape, dtype=WIDE):
    return torch.zeros(shape, dtype=dtype)


def heads(dtype=WIDE, tokens=3, count=2):
    return zeros(count, tokens, 16, dtype=dtype)


def lines(dtype=WIDE, tokens=3, count=2):
    return zeros(tokens, count, 16, dtype=dtype)


PANELS = to_panels(zeros(16, 16, dtype=NARROW))
CALLS = {
    "decoding with keys of another dtype": lambda k: k.attend(
        lines(tokens=1), lines(NARROW, 16), lines(tokens=16), READS, 1.0, lines(tokens=1)
    ),
    "decoding into another dtype": lambda k: k.attend(
        lines(tokens=1), lines(tokens=16), lines(tokens=16), READS, 1.0, lines(NARROW, 1)
    ),
    "rows with values of another dtype": lambda k: k.attend_rows(
        heads(), heads(tokens=16), heads(NARROW, 16), SPANS, 1.0, lines()
    ),
    "rows into another dtype": lambda k: k.attend_rows(
        heads(), heads(tokens=16), heads(tokens=16), SPANS, 1.0, lines(NARROW)
    ),
    "a linear layer of another dtype": lambda k: k.linear(zeros(2, 16), PANELS, None, 16),
    "a bias of another dtype": lambda k: k.linear(
        zeros(2, 16, dtype=NARROW), PANELS, zeros(16, dtype=NARROW), 16
    ),
    "a norm of another width": lambda k: k.rms_norm(zeros(2, 16), zeros(8), 1e-5),
    "angles of another width": lambda k: k.rotate(lines(), zeros(3, 8), zeros(3, 8)),
    "angles of too few tokens": lambda k: k.rotate(lines(), zeros(2, 16), zeros(2, 16)),
    "cells of another kind": lambda k: k.keep(
        heads(), None, torch.zeros(3, dtype=torch.int32), lines(tokens=16)
    ),
    "tokens nowhere": lambda k: k.rms_norm(zeros(2, 16).to("meta"), zeros(16).to("meta"), 1e-5),
}
GRADIENTS = {
    "a norm": lambda g: g.rms_norm_back(zeros(2, 16), zeros(16), zeros(2, 16, dtype=NARROW), 1e-5),
    "a norm's weight": lambda g: g.rms_norm_back(
        zeros(2, 16), zeros(16, dtype=NARROW), zeros(2, 16), 1e-5
    ),
    "a gate": lambda g: g.silu_mul_back(zeros(2, 32), zeros(2, 16, dtype=NARROW)),
    "an activation": lambda g: g.gelu(zeros(2, 16), zeros(2, 16, dtype=NARROW)),
    "attention": lambda g: g.attend_back(
        lines(), lines(), lines(), zeros(2, 3), lines(NARROW), HOW
    ),
    "attention whose heads do not share evenly": lambda g: g.attend(
        lines(count=3), lines(), lines(), HOW
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_would_go_wrong_in_memory_are_refused(kernels, case):
    with pytest.raises(AssertionError):
        CALLS[case](kernels)


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_that_would_go_wrong_in_memory_are_refused(kernels, case):
    with pytest.raises(AssertionError):
        GRADIENTS[case](GradientKernels(kernels))


def test_heads_that_do_not_share_evenly_are_not_for_the_kernels():
    assert fits_attention(9, 3, 64)
    assert not fits_attention(9, 2, 64)


@pytest.mark.parametrize("dtype", [WIDE, NARROW], ids=str)
def test_a_row_without_new_tokens_leaves_the_others_as_they_are(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 33, 16, generator=generator).to(dtype) for _ in range(2))
    outs = []
    for spans in (
        [Span(0, 33, 33, [0, 16, 32])],
        [Span(0, 33, 33, [0, 16, 32]), Span(33, 0, 5, [0])],
    ):
        outs.append(torch.full((33, 2, 16), float("nan"), dtype=dtype))
        kernels.attend_rows(query, key, key, join_spans(spans), 0.25, outs[-1])
    assert torch.equal(*outs)
