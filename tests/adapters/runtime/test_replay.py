"""Recorded decode passes on a CPU: to the last bit what the model itself gives, or no recording at all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.runtime.engine import Engine
from adapters.runtime.kernels import load_kernels
from adapters.runtime.limits import EngineLimits
from adapters.runtime.replay import CallRecorder, NotRecordable
from adapters.runtime.room import Buffer, place_buffers
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from tests.bundles import save_bundle, summarizer
from tests.rows import rows_of

ADAPTERS = {
    "summary": {"rank": 3},
    "other": {"rank": 16, "target_modules": ["q_proj", "v_proj"]},
    "third": {"rank": 5, "last_layers": 1},
}
MIXES = [
    [None, "summary", "other", None, "summary", "summary"],
    [None] * 3,
    ["third", None, "summary", "other", "third"] * 3,
    ["other"],
    [None, "summary", "other", None, "summary", "summary"],
]


@pytest.fixture(scope="module", autouse=True)
def _needs_a_compiler():
    if load_kernels() is None:
        pytest.skip("no C compiler on this machine")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("replay")
    for seed, (name, lora) in enumerate(ADAPTERS.items()):
        save_bundle(root / name, decoder_spec, summarizer(), seed=seed, **lora)
    return root


@pytest.fixture
def start(decoder_spec, bundles):
    def run(dtype="float32", *, by_hand=False, **limits):
        backbone = load_backbone(decoder_spec, dtype, fuse=True)
        engine = Engine(backbone, bundles.__truediv__, EngineLimits(**limits))
        if by_hand:
            engine._forward._graphs = None
        return engine

    return run


def generating(tokenizer, adapters, max_new_tokens=12):
    generation = Generation(max_new_tokens, (), num_logprobs=2)
    rows = rows_of(tokenizer, adapters)
    return [Row(row.row_id, row.token_ids, row.adapter, generation) for row in rows]


def count_replays(engine):
    """Return a list that each replay of an engine's recordings is put into."""
    record, replays = engine._forward._graphs._record, []

    def counting(compute):
        replay = record(compute)
        return lambda: replays.append(replay) or replay()

    engine._forward._graphs._record = counting
    return replays


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_passes_give_to_the_bit_what_passes_by_hand_give(start, decoder_tokenizer, dtype):
    recorded, by_hand = start(dtype), start(dtype, by_hand=True)
    replays = count_replays(recorded)
    for engine in (
        recorded,
        by_hand,
    ):  # adapters are read, so that rows have the same company in both
        engine.run(generating(decoder_tokenizer, ADAPTERS, max_new_tokens=1))
    for mix in MIXES:
        rows = generating(decoder_tokenizer, mix)
        for left, right in zip(recorded.run(rows), by_hand.run(rows), strict=True):
            assert left.error is right.error is None
            assert left.output.token_ids == right.output.token_ids
            assert left.output.logprobs == right.output.logprobs
    assert len(replays) > 3 * len(recorded._forward._graphs._recordings) > 0


def test_an_adapter_that_came_to_another_place_is_read_there(start, decoder_tokenizer):
    """One slot: each row's adapter evicts the one before, and the recording must not remember its addresses."""
    recorded, by_hand = start(bank_slots=1), start(bank_slots=1, by_hand=True)
    replays = count_replays(recorded)
    for adapter in ["summary", "other", "summary", "third", "other"]:
        row = generating(decoder_tokenizer, [adapter])
        (left,), (right,) = recorded.run(row), by_hand.run(row)
        assert left.output.logprobs == right.output.logprobs
    assert len(replays) > 30


@pytest.mark.parametrize(
    ("read", "why"),
    [
        pytest.param(lambda x: x.abs().max().item(), "aten.item", id="by an operator"),
        pytest.param(lambda x: x.flatten().tolist()[0], "something else", id="by no operator"),
    ],
)
def test_a_model_that_decides_by_a_value_is_run_by_hand(
    start, decoder_tokenizer, caplog, read, why
):
    """What Python reads would be that of the recorded pass for ever; ``tolist`` shows only when it is another."""
    recorded, by_hand = start(), start(by_hand=True)
    for engine in (recorded, by_hand):
        norm = engine.backbone.model.model.norm
        norm.register_forward_hook(lambda _module, _given, x: x * read(x))
    rows = generating(decoder_tokenizer, [None])
    (left,), (right,) = recorded.run(rows), by_hand.run(rows)
    assert left.output.logprobs == right.output.logprobs
    (message,) = [r.message for r in caplog.records if "can't be recorded" in r.message]
    assert why in message


@pytest.fixture
def layers():
    """A computation of kernels and operators on ``x``, in place of a model."""
    kernels = load_kernels()
    generator = torch.Generator().manual_seed(0)
    weight_D = torch.rand(48, generator=generator)

    def compute(x):
        for _ in range(6):
            gates = torch.cat([kernels.rms_norm(x, weight_D, 1e-6), x * 0.5], -1)
            x = x + kernels.silu_mul(gates)
        return kernels.rms_norm(x, weight_D, 1e-6)

    return compute


def test_recordings_of_different_size_share_their_room(layers):
    recorder = CallRecorder(load_kernels())
    inputs = [
        torch.randn(rows, 48, generator=torch.Generator().manual_seed(rows)) for rows in (2, 90)
    ]
    replays = [recorder(lambda x=x: layers(x)) for x in inputs]
    for _ in range(3):
        for x, replay in zip(inputs, replays, strict=True):
            x.mul_(1.5)
            out = replay()
            assert torch.equal(out, layers(x))
            assert out.untyped_storage().data_ptr() == recorder._room._bytes.data_ptr()
    # 90 rows of 48 numbers are 17 KB; each layer makes three such tensors that only kernels touch.
    assert len(recorder._room._bytes) < 4 * 90 * 48 * 4


def test_an_output_outlasts_what_is_made_after_it():
    kernels, x, other = load_kernels(), torch.ones(3, 48), torch.zeros(3, 48)

    def compute():
        out = kernels.add(x, x)
        for _ in range(3):
            kernels.add(other, kernels.add(other, other))
        return out

    replay = CallRecorder(kernels)(compute)
    assert torch.equal(replay(), 2 * x)


def test_kernels_of_training_are_not_recorded():
    kernels = load_kernels()

    def compute():
        kernels._call("attend_rows", torch.float32)

    with pytest.raises(NotRecordable, match="attend_rows"):
        CallRecorder(kernels)(compute)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 20), st.integers(0, 20)), max_size=25)
)
@settings(deadline=None)
def test_buffers_of_the_same_time_have_different_places(drawn):
    buffers = [Buffer(0, size, min(a, b), max(a, b)) for size, a, b in drawn]
    total = place_buffers(buffers)
    for i, one in enumerate(buffers):
        assert one.offset % 64 == 0
        assert one.offset + one.size <= total
        for other in buffers[:i]:
            if one.first <= other.last and other.first <= one.last:
                assert (
                    one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
                )
