"""The GPU's kernels do what torch does: on the GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.runtime.choice import Trial, choose_gpu_kernels, is_better
from adapters.runtime.route import KernelRoute, Site, TorchRoute

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if HAS_GPU else "cpu")
# The interpreter computes bf16 as integers; fp16 takes the same way through the kernel.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="Triton isn't installed")
    from adapters.runtime.triton_kernels import TritonKernels

    return TritonKernels()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_updates_of_a_mixed_batch_equal_torchs(kernels, dtype, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    inputs, widths = data.draw(
        st.sampled_from(
            [
                (32, (32, 16, 16)),
                (7, (65,)),
                (2100, (130, 3)),
                (4200, (5,)),
                (9000, (5,)),
                (200, (300,)),
            ]
        )
    )
    names = tuple(f"m{i}" for i in range(len(widths)))
    ranks = st.dictionaries(st.sampled_from(names), st.sampled_from([1, 3, 16, 33]))
    adapters = data.draw(st.lists(ranks, min_size=1, max_size=4))
    owners = data.draw(st.lists(st.integers(-1, len(adapters) - 1), min_size=1, max_size=6))
    lengths = [data.draw(st.sampled_from([1, 2, 16, 17])) for _ in owners]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    spans = [(bounds[i], bounds[i + 1]) for i, owner in enumerate(owners) if owner >= 0]
    if not spans:
        return

    def random(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    modules = [
        {
            n: (random(rank, inputs) / inputs**0.5, random(rank, widths[names.index(n)]))
            for n, rank in adapter.items()
        }
        for adapter in adapters
    ]
    x, out = random(bounds[-1], inputs), random(bounds[-1], sum(widths))
    owner_T = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths)).to(DEVICE)
    site = Site(0, names, torch.tensor(widths))
    expected, actual = out.double(), out.clone()
    in_doubles = [{n: (a.double(), b.double()) for n, (a, b) in m.items()} for m in modules]
    TorchRoute(owner_T, in_doubles).add(x.double(), expected, site)
    table = torch.tensor([[cells(m, names)] for m in modules], device=DEVICE)
    KernelRoute.over(kernels, spans, [o for o in owners if o >= 0], table).add(x, actual, site)
    scale = max(1.0, float(expected.abs().max()))
    assert float((actual.double() - expected).abs().max()) <= TOLERANCE[dtype] * scale
    assert torch.equal(actual[owner_T < 0], out[owner_T < 0])


def cells(modules, names):
    return [
        (modules[n][0].data_ptr(), modules[n][1].data_ptr(), modules[n][0].shape[0])
        if n in modules
        else (0, 0, 0)
        for n in names
    ]


@pytest.mark.skipif(not HAS_GPU, reason="the interpreter's products round by the number of rows")
def test_a_rows_update_is_the_same_in_any_batch(kernels):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 4096, generator=generator).to(DEVICE)
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 12)]]], device=DEVICE)
    site = Site(0, ("m",), torch.tensor([4096]))
    x = torch.randn(38, 4096, generator=generator).to(DEVICE)
    together, alone = torch.zeros(2, 38, 4096, device=DEVICE)
    rows = [(0, 1), (1, 4), (4, 20), (20, 37), (37, 38)]
    KernelRoute.over(kernels, rows, [0] * 5, table).add(x, together, site)
    for first, end in rows:
        route = KernelRoute.over(kernels, [(0, end - first)], [0], table)
        route.add(x[first:end], alone[first:end], site)
    assert torch.equal(together, alone)


class Wrong:
    """A kernel that a GPU got wrong."""

    tile = 16

    def add_lora(self, x_TI, out_TO, tiles_N3, table, group, widths):
        out_TO += 1


class Broken(Wrong):
    """A kernel that a GPU's compiler refuses."""

    def add_lora(self, x_TI, out_TO, tiles_N3, table, group, widths):
        raise RuntimeError("no kernel image is available")


class Quick(Wrong):
    """A kernel that is right, and faster than anything: it knows the answers already."""

    def __init__(self):
        self.answers = {}

    def add_lora(self, x_TI, out_TO, tiles_N3, table, group, widths):
        out_TO.copy_(self.answers[out_TO.shape])


def test_a_kernel_that_is_slower_than_torch_is_not_chosen(kernels):
    if HAS_GPU:
        pytest.skip("which one is faster on a GPU is not known beforehand")
    assert not is_better(kernels, [(64, 32)], torch.float32, DEVICE)


@pytest.mark.parametrize(("kernel", "said"), [(Wrong(), "not torch's"), (Broken(), "no kernel")])
def test_a_kernel_that_does_not_work_is_not_chosen_and_the_log_says_why(kernel, said, caplog):
    assert not is_better(kernel, [(64, 32), (32, 64)], torch.float32, DEVICE)
    assert said in caplog.text


def test_a_lost_device_is_not_taken_for_a_kernel_that_does_not_work():
    class Lost(Wrong):
        def add_lora(self, x_TI, out_TO, tiles_N3, table, group, widths):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError):
        is_better(Lost(), [(64, 32)], torch.float32, DEVICE)


def test_a_kernel_that_is_right_and_faster_is_chosen():
    quick = Quick()
    for inputs, outputs in [(512, 256), (256, 512)]:
        for num_tokens in (1, 20):
            trial = Trial.make(quick, inputs, outputs, torch.float32, DEVICE, num_tokens)
            quick.answers[trial.before_TO.shape] = trial._run(trial.dense)
    assert is_better(quick, [(512, 256), (256, 512)], torch.float32, DEVICE)


def test_a_cpu_has_no_choice(decoder_spec):
    assert choose_gpu_kernels(load_backbone(decoder_spec, "float32")) is None


def test_a_tile_without_tokens_does_nothing(kernels):
    a, b, x = (torch.ones(shape, device=DEVICE) for shape in ((3, 8), (3, 5), (9, 8)))
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 3)]]], device=DEVICE)
    tiles = torch.tensor([(0, 0, 0), (4, 1, 0), (6, 0, 0)], dtype=torch.int32, device=DEVICE)
    out = torch.zeros(9, 5, device=DEVICE)
    KernelRoute(kernels, tiles, table).add(x, out, Site(0, ("m",), torch.tensor([5])))
    assert out.sum(1).nonzero().flatten().tolist() == [4]


def test_kernels_compile_for_a_gpu_and_wait_for_memory_once(tmp_path):
    """The interpreter takes what the compiler refuses, and does not tell how fast a load is.

    A lone token's numbers of A, or of B, must all be asked for before anything waits for some of them.
    """
    pytest.importorskip("triton", reason="Triton isn't installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    loads = [int(count) for count in done.stdout.split()]
    # Of 16 bytes a thread: 16 ranks of 512 or 256 numbers over 32 threads; in fp32 256 at a time.
    fewest = [32, 16, 32, 32]
    assert all(found >= wanted for found, wanted in zip(loads, fewest, strict=True)), loads


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from adapters.runtime import triton_kernels as ours

TYPES = {"low": "*fp32", "offsets": "*i64", "tiles": "*i32", "table": "*i64"}
SIZES = {"TOKENS": ours.TILE, "RANKS": ours._RANKS, "INPUTS": ours._INPUTS, "TILE_INPUTS": ours._TILE_INPUTS,
         "OUTPUTS": ours._OUTPUTS, "TILE_OUTPUTS": ours._TILE_OUTPUTS, "SPLIT": 512, "SPLITS": 4, "MOST": 512,
         "IS_EVEN": True}
for dtype in ("bf16", "fp32"):
    for kernel in (ours._shrink, ours._expand):
        types = {**TYPES, "x": "*" + dtype, "out": "*" + dtype}
        names = kernel.arg_names
        signature = {n: "constexpr" if n in SIZES else types.get(n, "i32") for n in names}
        constants = {(i,): SIZES[n] for i, n in enumerate(names) if n in SIZES}
        even = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
                if n not in SIZES and n != "num_splits"}
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=even)
        options = {"num_warps": ours._WARPS}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        stretches = re.split(r"bar\\.(?:sync|warp)|shfl", made.asm["ptx"])
        print(max(stretch.count("ld.global.v4") for stretch in stretches))
"""
