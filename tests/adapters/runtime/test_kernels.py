"""The compiled kernels do what torch does, in fp32 and bf16, on any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from adapters.runtime import kernels as kernels_module
from adapters.runtime.kernels import fits, fits_attention, load_kernels
from adapters.runtime.route import KernelRoute, Site, TorchRoute

kernels = load_kernels()
needs_kernels = pytest.mark.skipif(kernels is None, reason="no C compiler on this machine")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_updates_of_a_mixed_batch_equal_torchs(dtype, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    inputs, widths = data.draw(st.sampled_from([(32, (32, 16, 16)), (7, (65,)), (48, (130, 3))]))
    names = tuple(f"m{i}" for i in range(len(widths)))
    ranks = st.dictionaries(st.sampled_from(names), st.sampled_from([1, 3, 8, 64, 512]))
    adapters = data.draw(st.lists(ranks, min_size=1, max_size=4))
    modules = [random_modules(a, names, widths, inputs, dtype, generator) for a in adapters]
    owners = data.draw(st.lists(st.integers(-1, len(adapters) - 1), min_size=1, max_size=6))
    lengths = [data.draw(st.sampled_from([1, 2, 4, 5, 9])) for _ in owners]
    site = Site(0, names, torch.tensor(widths))
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    spans = [(bounds[i], bounds[i + 1]) for i, o in enumerate(owners) if o >= 0]
    if not spans:
        return
    x = torch.randn(bounds[-1], inputs, generator=generator).to(dtype)
    out = torch.randn(bounds[-1], sum(widths), generator=generator).to(dtype)
    owner_T = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths))
    expected, actual = out.float(), out.clone()
    as_floats = [{n: (a.float(), b.float()) for n, (a, b) in m.items()} for m in modules]
    TorchRoute(owner_T, as_floats).add(x.float(), expected, site)
    table = torch.tensor([[cells(m, names)] for m in modules])
    KernelRoute(kernels, spans, [o for o in owners if o >= 0], table).add(x, actual, site)
    scale = max(1.0, float(expected.abs().max()))
    assert float((actual.float() - expected).abs().max()) <= TOLERANCE[dtype] * scale
    assert torch.equal(actual[owner_T < 0], out[owner_T < 0])


def random_modules(ranks, names, widths, inputs, dtype, generator):
    return {
        name: (
            torch.randn(rank, inputs, generator=generator).to(dtype),
            torch.randn(rank, widths[names.index(name)], generator=generator).to(dtype),
        )
        for name, rank in ranks.items()
    }


def cells(modules, names):
    return [
        (modules[n][0].data_ptr(), modules[n][1].data_ptr(), modules[n][0].shape[0])
        if n in modules
        else (0, 0, 0)
        for n in names
    ]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 8), (8, 1, 96)])
def test_attention_to_the_past_equals_torchs(dtype, heads, kv_heads, size):
    generator = torch.Generator().manual_seed(heads)
    lengths = torch.tensor([1, 15, 16, 17, 40, 100], dtype=torch.int32)
    keys, values = (
        torch.randn(64 * 16, kv_heads, size, generator=generator).to(dtype) for _ in range(2)
    )
    query = torch.randn(6, heads, size, generator=generator).to(dtype)
    blocks = torch.randperm(64, generator=generator)[: 6 * 7].view(6, 7).to(torch.int32)
    actual = kernels.attend(query, keys, values, blocks, lengths, size**-0.5)
    for row, length in enumerate(lengths.tolist()):
        cells_L = (blocks[row].long()[:, None] * 16 + torch.arange(16)).flatten()[:length]
        key, value = (x[cells_L].float().transpose(0, 1)[None] for x in (keys, values))
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[row].float()[None, :, None], key, value, enable_gqa=True
        )[0, :, 0]
        torch.testing.assert_close(
            actual[row].float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


@needs_kernels
def test_not_a_number_stays_one():
    a, b = torch.ones(1, 4), torch.ones(1, 4)
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 1)]]])
    x, out = torch.tensor([[1.0, float("nan"), 1.0, 1.0]]), torch.zeros(1, 4)
    route = KernelRoute(kernels, [(0, 1)], [0], table)
    route.add(x, out, Site(0, ("m",), torch.tensor([4])))
    assert out.isnan().all()


def test_without_a_compiler_there_are_no_kernels_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kernels_module.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert load_kernels.__wrapped__(tmp_path) is None
    assert "No C compiler" in caplog.text


def test_a_compiler_that_fails_is_no_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CC", "false")
    assert load_kernels.__wrapped__(tmp_path) is None
    assert "can't be used" in caplog.text


def test_kernels_are_for_cpus_and_the_dtypes_they_know():
    assert fits(torch.bfloat16, torch.device("cpu"))
    assert not fits(torch.float16, torch.device("cpu"))
    assert not fits(torch.bfloat16, torch.device("cuda:0"))
    assert fits_attention(32, 1, 256)
    assert not fits_attention(33, 1, 64)
    assert not fits_attention(8, 8, 257)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (3, 5, 33), (40, 128)], ids=str)
def test_norm_and_gate_equal_the_librarys(dtype, shape):
    generator = torch.Generator().manual_seed(len(shape))
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    norm = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    norm.weight.data.normal_(1, 0.2, generator=generator)
    with torch.no_grad():
        expected = norm(x)
    actual = kernels.rms_norm(x, norm.weight, 1e-5)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    gate, up = (torch.randn(shape, generator=generator).mul(4).to(dtype) for _ in range(2))
    expected = torch.nn.functional.silu(gate) * up
    actual = kernels.silu_mul(torch.cat([gate, up], -1))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
