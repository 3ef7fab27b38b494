"""What training computes by kernel, and its gradients, are what torch's own operators and autograd say."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from adapters.runtime.gradient_kernels import Attending, GradientKernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def gradients(kernels):
    return GradientKernels(kernels)


@DTYPES
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_attention_and_its_gradient_equal_torchs(gradients, dtype, data):
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (9, 3), (4, 4), (6, 2)]))
    size = data.draw(st.sampled_from([4, 20, 32, 64, 80]))
    lengths = sorted(data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=4)))
    is_causal = data.draw(st.booleans())
    window = data.draw(st.sampled_from([None, 3, 40]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    bounds, how = laid_out(lengths, size**-0.5, is_causal, window)
    query, key, value = parts(sum(lengths), heads, kv_heads, size, dtype, generator)
    upstream = torch.randn(query.shape, generator=generator).to(dtype)

    expected = expected_attention(query, key, value, bounds, how)
    wanted = torch.autograd.grad(expected, (query, key, value), upstream.float())
    out, sums = gradients.attend(query, key, value, how)
    found = gradients.attend_back(query, key, value, sums, upstream, how)

    assert_near(out, expected, dtype)
    for ours, theirs in zip(found.split((heads, kv_heads, kv_heads), 1), wanted, strict=True):
        assert_near(ours, theirs, dtype)


@DTYPES
def test_attention_with_dropout_has_the_gradient_of_what_was_dropped(gradients, dtype):
    lengths, heads, size = [3, 17, 40], 2, 64
    generator = torch.Generator().manual_seed(0)
    bounds, how = laid_out(lengths, 0.125, False, None, dropout=0.3, seed=7)
    query, key, value = parts(sum(lengths), heads, heads, size, dtype, generator)
    upstream = torch.randn(query.shape, generator=generator).to(dtype)
    kept = kept_by(gradients, lengths, bounds, how, heads, size, dtype)

    expected = expected_attention(query, key, value, bounds, how, kept)
    wanted = torch.autograd.grad(expected, (query, key, value), upstream.float())
    out, sums = gradients.attend(query, key, value, how)
    found = gradients.attend_back(query, key, value, sums, upstream, how)

    assert_near(out, expected, dtype)
    for ours, theirs in zip(found.split(heads, 1), wanted, strict=True):
        assert_near(ours, theirs, dtype)
    shares = torch.cat([each.flatten() for each in kept]) == 0
    assert 0.27 < float(shares.float().mean()) < 0.33
    assert not torch.equal(kept[2][0], kept[2][1])  # each head draws its own


def test_attention_is_the_same_with_any_number_of_threads(gradients):
    lengths = [5, 33, 64]
    generator = torch.Generator().manual_seed(0)
    _, how = laid_out(lengths, 0.125, True, None, dropout=0.1, seed=3)
    query, key, value = parts(sum(lengths), 6, 2, 32, torch.float32, generator)
    upstream = torch.randn(query.shape, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, sums = gradients.attend(query, key, value, how)
            found.append((out, gradients.attend_back(query, key, value, sums, upstream, how)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_no_more_threads_work_than_have_room(gradients, monkeypatch):
    """A compiler may bring an OpenMP of its own, to which torch's number of threads means nothing."""
    _, how = laid_out([16] * 40, 0.125, True, None)
    query, key, value = parts(640, 6, 2, 32, torch.float32, torch.Generator().manual_seed(0))
    room = torch.full((4, gradients._space(how.longest, 32)), 7.0)
    monkeypatch.setattr(gradients, "_room", lambda *_: room[:1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        out, sums = gradients.attend(query, key, value, how)
        gradients.attend_back(query, key, value, sums, out, how)
    finally:
        torch.set_num_threads(before)
    assert bool((room[1:] == 7.0).all())


def test_sums_are_fp32_whatever_torchs_default_is(gradients):
    _, how = laid_out([5, 20], 0.125, True, None)
    query, key, value = parts(25, 6, 2, 32, torch.float32, torch.Generator().manual_seed(0))
    expected, _ = gradients.attend(query, key, value, how)
    torch.set_default_dtype(torch.float64)
    try:
        out, sums = gradients.attend(query, key, value, how)
        grads = gradients.attend_back(query, key, value, sums, out, how)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)
    assert sums.dtype == grads.dtype == torch.float32


@DTYPES
@given(rows=st.integers(1, 9), size=st.sampled_from([1, 7, 48, 130]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_gradients_of_small_parts_equal_autograds(gradients, dtype, rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(rows, 2 * size, generator=generator)).to(dtype)
    weight = torch.randn(2 * size, generator=generator).to(dtype)
    wide, narrow = (torch.randn(rows, n, generator=generator).to(dtype) for n in (2 * size, size))

    def normed(x):
        return weight.float() * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    def gated(x):
        gate, up = x.chunk(2, dim=-1)
        return silu(gate) * up

    found = gradients.rms_norm_back(x, weight, wide, 1e-5)
    assert_near(found, slope(normed, x, wide), dtype)
    assert_near(gradients.silu_mul_back(x, narrow), slope(gated, x, narrow), dtype)
    assert_near(gradients.gelu(x), gelu(x.float()), dtype)
    assert_near(gradients.gelu(x, wide), slope(gelu, x, wide), dtype)


@DTYPES
def test_dropout_drops_its_share_and_the_same_again_for_the_same_seed(gradients, dtype):
    ones = torch.ones(300, 401, dtype=dtype)
    dropped = gradients.drop_out(ones, 0.1, seed=5)
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.9, dtype=dtype))}
    assert 0.095 < float((dropped == 0).float().mean()) < 0.105
    assert torch.equal(dropped, gradients.drop_out(ones, 0.1, seed=5))
    other = gradients.drop_out(ones, 0.1, seed=6)
    both = float(((dropped == 0) & (other == 0)).float().mean())
    assert 0.008 < both < 0.012  # as independent ones would
    by_row = (dropped == 0).float().mean(1)
    assert float(by_row.std()) < 1.5 * (0.09 / 401) ** 0.5


def laid_out(lengths, scale, is_causal, window, dropout=0.0, seed=0):
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    return bounds, Attending(bounds, lengths[-1], scale, is_causal, window, dropout, seed)


def parts(tokens, heads, kv_heads, size, dtype, generator):
    """Query, key and value as views of one tensor, as a fused layer leaves them."""
    whole = torch.randn(tokens, heads + 2 * kv_heads, size, generator=generator).to(dtype)
    return [x.requires_grad_() for x in whole.split((heads, kv_heads, kv_heads), 1)]


def expected_attention(query, key, value, bounds, how, kept=None):
    rows = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        shared = query.shape[1] // key.shape[1]
        q, k, v = (x[start:stop].float().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(shared, 0) for x in (k, v))
        place = torch.arange(stop - start)
        ahead = place[None] - place[:, None]
        sees = torch.ones_like(ahead, dtype=torch.bool)
        if how.is_causal:
            sees &= ahead <= 0
        if how.window is not None:
            sees &= ahead.abs() < how.window
        weights = (how.scale * q @ k.transpose(1, 2)).masked_fill(~sees, -torch.inf).softmax(-1)
        if kept is not None:
            weights = weights * kept[number]
        rows.append((weights @ v).transpose(0, 1))
    return torch.cat(rows)


def kept_by(gradients, lengths, bounds, how, heads, size, dtype):
    """What the weights of each row are multiplied by: read off with equal scores, and values that tell the cells."""
    query = torch.zeros(sum(lengths), heads, size, dtype=dtype)
    value = torch.zeros_like(query)
    for start, length in zip(bounds.tolist(), lengths, strict=False):
        value[start : start + length, :, :length] = torch.eye(length, dtype=dtype)[:, None]
    out, _ = gradients.attend(query, query, value, how)
    return [
        ((out[start : start + length, :, :length] != 0) / (1 - how.dropout)).transpose(0, 1)
        for start, length in zip(bounds.tolist(), lengths, strict=False)
    ]


def slope(function, x, upstream):
    x = x.float().requires_grad_()
    return torch.autograd.grad(function(x), x, upstream.float())[0]


def assert_near(found, expected, dtype):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        found.float(), expected.detach().float(), atol=TOLERANCE[dtype] * scale, rtol=0
    )
