"""The GPU's kernels do what torch does: on the GPU where there is one, else in Triton's interpreter."""

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
        st.sampled_from([(32, (32, 16, 16)), (7, (65,)), (2100, (130, 3)), (200, (129,))])
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
    KernelRoute(kernels, spans, [o for o in owners if o >= 0], table).add(x, actual, site)
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


@pytest.mark.skipif(
    not HAS_GPU, reason="the interpreter's products round by a row's place in its tile"
)
def test_a_tokens_update_is_the_same_in_any_batch(kernels):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 4096, generator=generator).to(DEVICE)
    table = torch.tensor([[[(a.data_ptr(), b.data_ptr(), 12)]]], device=DEVICE)
    site = Site(0, ("m",), torch.tensor([4096]))
    x = torch.randn(19, 4096, generator=generator).to(DEVICE)
    together, alone = torch.zeros(2, 19, 4096, device=DEVICE)
    KernelRoute(kernels, [(0, 19)], [0], table).add(x, together, site)
    for i in range(19):
        KernelRoute(kernels, [(0, 1)], [0], table).add(x[i : i + 1], alone[i : i + 1], site)
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
        out_TO.copy_(self.answers[out_TO.shape[1]])


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
        trial = Trial.make(quick, inputs, outputs, torch.float32, DEVICE)
        quick.answers[outputs] = trial._run(trial.dense)
    assert is_better(quick, [(512, 256), (256, 512)], torch.float32, DEVICE)


def test_a_cpu_has_no_choice(decoder_spec):
    assert choose_gpu_kernels(load_backbone(decoder_spec, "float32")) is None
