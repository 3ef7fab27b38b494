"""The compiled kernels do what torch does, in fp32 and bf16, on any shape."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from adapters.runtime import compiling
from adapters.runtime.kernels import fits, fits_attention, load_kernels, to_panels
from adapters.runtime.linears import PanelEmbedding
from adapters.runtime.route import KernelRoute, Site, TorchRoute
from adapters.runtime.spans import Reads, Span, join_spans

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_updates_of_a_mixed_batch_equal_torchs(kernels, dtype, data):
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
    KernelRoute.over(kernels, spans, [o for o in owners if o >= 0], table).add(x, actual, site)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 8), (8, 1, 96), (12, 2, 128), (5, 5, 33)]
)
@pytest.mark.parametrize("long", [255, 256, 257, 530])
def test_attention_to_the_past_equals_torchs(kernels, dtype, heads, kv_heads, size, long):
    generator = torch.Generator().manual_seed(heads)
    lengths = torch.tensor([1, 15, 16, 17, 40, 100, long, long], dtype=torch.int32)
    keys, values = (
        torch.randn(8 * 34 * 16, kv_heads, size, generator=generator).to(dtype) for _ in range(2)
    )
    query = torch.randn(8, heads, size, generator=generator).to(dtype) * 3
    blocks = torch.randperm(8 * 34, generator=generator).view(8, 34).to(torch.int32)
    actual = torch.empty_like(query)
    kernels.attend(query, keys, values, Reads(len(lengths), blocks, lengths), size**-0.5, actual)
    for row, length in enumerate(lengths.tolist()):
        cells_L = (blocks[row].long()[:, None] * 16 + torch.arange(16)).flatten()[:length]
        key, value = (x[cells_L].float().transpose(0, 1)[None] for x in (keys, values))
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[row].float()[None, :, None], key, value, enable_gqa=True
        )[0, :, 0]
        torch.testing.assert_close(
            actual[row].float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (12, 12, 32), (8, 1, 20)])
def test_attention_of_rows_with_several_tokens_equals_torchs(
    kernels, dtype, is_causal, window, heads, kv_heads, size
):
    generator = torch.Generator().manual_seed(heads)
    rows = [(1, 0), (3, 0), (16, 5), (17, 16), (40, 33), (100, 0)]  # new tokens, those before
    block = iter((torch.randperm(64, generator=generator) * 16).tolist())
    keys, values = (
        torch.randn(64 * 16, kv_heads, size, generator=generator).to(dtype) for _ in range(2)
    )
    query = torch.randn(177, heads, size, generator=generator).to(dtype)
    spans, first = [], 0
    for new, past in rows:
        cells = [next(block) for _ in range(-(-(new + past) // 16))]
        spans.append(Span(first, new, new + past, cells))
        first += new
    actual = torch.full_like(query, float("nan"))
    kernels.attend_rows(
        query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), join_spans(spans),
        size**-0.5, actual, is_causal=is_causal, window=window,
    )  # fmt: skip
    for span in spans:
        cells_L = (torch.tensor(span.cells)[:, None] + torch.arange(16)).flatten()
        key, value = (x[cells_L[: span.num_tokens]].float().transpose(0, 1) for x in (keys, values))
        stop = span.first + span.num_new
        ahead = torch.arange(span.num_tokens) - torch.arange(span.num_tokens)[-span.num_new :, None]
        seen = (ahead <= 0) | torch.tensor(not is_causal)
        if window is not None:
            seen &= ahead.abs() < window
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[span.first : stop].float().transpose(0, 1)[None],
            key[None], value[None], attn_mask=seen, enable_gqa=True,
        )[0].transpose(0, 1)  # fmt: skip
        torch.testing.assert_close(
            actual[span.first : stop].float(),
            expected,
            atol=TOLERANCE[dtype],
            rtol=TOLERANCE[dtype],
        )


@pytest.mark.parametrize("num_outputs", [1, 16, 77, 576])
@pytest.mark.parametrize("num_inputs", [16, 64, 576])
def test_linear_layers_are_torchs_and_the_same_in_any_company(kernels, num_outputs, num_inputs):
    generator = torch.Generator().manual_seed(num_outputs)
    weight = torch.randn(num_outputs, num_inputs, generator=generator).bfloat16()
    if not kernels.fits_linear(weight):
        pytest.skip("This processor multiplies matrices of bf16; oneDNN is faster there.")
    bias = torch.randn(num_outputs, generator=generator)
    x = torch.randn(60, num_inputs, generator=generator).bfloat16()
    panels = to_panels(weight)
    actual = kernels.linear(x, panels, bias, num_outputs)
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(actual.double(), expected, atol=0.02, rtol=0.01)
    for count in (*range(1, 20), 33):
        alone = kernels.linear(x[:count], panels, bias, num_outputs)
        assert torch.equal(alone, actual[:count])


def test_an_embedding_is_read_from_the_language_heads_panels():
    weight = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    token_ids = torch.tensor([[0, 15, 16, 99], [7, 7, 31, 64]])
    assert torch.equal(PanelEmbedding(to_panels(weight))(token_ids), weight[token_ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotation_is_the_librarys(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 8, 64, generator=generator).to(dtype)
    angle = torch.rand(9, 32, generator=generator) * 6
    cos, sin = (torch.cat([f(angle)] * 2, dim=1).to(dtype) for f in (torch.cos, torch.sin))
    rows = [y.transpose(0, 1)[None] for y in (x[:, :5], x[:, 5:])]
    expected = apply_rotary_pos_emb(*rows, cos[None], sin[None])
    kernels.rotate(x[:, :5], cos, sin)  # the first heads of a token; the others stay
    # In fp32 the compiler may fuse a product and a sum; in bf16 all is rounded in between.
    tolerance = 1e-6 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(
        x[:, :5].transpose(0, 1), expected[0][0], atol=tolerance, rtol=tolerance
    )
    assert torch.equal(x[:, 5:].transpose(0, 1), rows[1][0])


def test_not_a_number_stays_one(kernels):
    a, b = torch.ones(1, 4), torch.ones(1, 4)
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 1)]]])
    x, out = torch.tensor([[1.0, float("nan"), 1.0, 1.0]]), torch.zeros(1, 4)
    route = KernelRoute.over(kernels, [(0, 1)], [0], table)
    route.add(x, out, Site(0, ("m",), torch.tensor([4])))
    assert out.isnan().all()


def test_without_a_compiler_there_are_no_kernels_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert load_kernels.__wrapped__(tmp_path) is None
    assert "No C compiler" in caplog.text


@pytest.fixture
def soon_compiled(monkeypatch):
    """Kernels that are as slow as they are soon made."""
    flags = tuple("-O0" if flag == "-O3" else flag for flag in compiling._FLAGS)
    monkeypatch.setattr(compiling, "_FLAGS", flags)


@pytest.mark.usefixtures("soon_compiled")
@pytest.mark.parametrize("damage", [b"", b"\0" * 4096, None])
def test_a_damaged_file_is_compiled_again(tmp_path, damage):
    if load_kernels.__wrapped__(tmp_path) is None:
        pytest.skip("no C compiler on this machine")
    (made,) = (tmp_path / "kernels").glob("*.so")
    whole = made.read_bytes()
    other = tmp_path / "other"  # never write into a file that this process has mapped
    other.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    other.replace(made)
    assert load_kernels.__wrapped__(tmp_path) is not None
    assert len(made.read_bytes()) == len(whole)


@pytest.mark.usefixtures("soon_compiled")
def test_a_compiler_may_have_arguments(tmp_path, monkeypatch):
    if load_kernels() is None:
        pytest.skip("no C compiler on this machine")
    monkeypatch.setenv("CC", "env cc")
    assert load_kernels.__wrapped__(tmp_path) is not None


@pytest.mark.usefixtures("soon_compiled")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86-64's processors")
@pytest.mark.parametrize("processor", ["native", "x86-64", "x86-64-v3", "skylake-avx512"])
def test_vectors_are_no_wider_than_the_processors(tmp_path, monkeypatch, processor, caplog):
    """A compiler takes wider ones apart, shuffles number by number: attention then runs at a fiftieth of the speed."""
    if load_kernels() is None:
        pytest.skip("no C compiler on this machine")
    flags = [f for f in compiling._FLAGS if f != "-march=native"]
    monkeypatch.setattr(compiling, "_FLAGS", (*flags, f"-march={processor}", "-Werror=psabi"))
    load_kernels.__wrapped__(tmp_path)
    assert "psabi" not in caplog.text


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (3, 5, 33), (40, 128)], ids=str)
def test_norm_and_gate_equal_the_librarys(kernels, dtype, shape):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 37), (120, 576)], ids=str)
def test_sums_are_torchs(kernels, dtype, shape):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(shape, generator=generator).mul(9).to(dtype) for _ in range(2))
    y.flatten()[0] = float("inf")
    assert torch.equal(kernels.add(x, y), x + y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tile_without_tokens_does_nothing(kernels, dtype):
    a, b, x = (
        torch.ones(3, 8, dtype=dtype),
        torch.ones(3, 5, dtype=dtype),
        torch.ones(9, 8, dtype=dtype),
    )
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 3)]]])
    tiles = torch.tensor([(0, 0, 0), (4, 1, 0), (6, 0, 0)], dtype=torch.int32)
    out = torch.zeros(9, 5, dtype=dtype)
    KernelRoute(kernels, tiles, table).add(x, out, Site(0, ("m",), torch.tensor([5])))
    assert out.sum(1).nonzero().flatten().tolist() == [4]
