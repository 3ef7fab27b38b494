"""The same engine on CUDA; skipped where there is no device."""

import pytest
import torch

from adapters.backbone import describe_backbone, load_backbone
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.quantized import quantized_linear
from adapters.runtime.rows import Row
from adapters.tokenizer import load_tokenizer
from benchmarks.bundles import Lora, make_bundle
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.rows import assert_same, rows_of
from tests.tiny import save_backbone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("cuda-bundles")
    made = {
        "two": (classifier(2), {"rank": 4}),
        "many": (classifier(77), {"rank": 64, "target_modules": ["q_proj", "v_proj"]}),
        "spans": (answerer(), {"rank": 16, "last_layers": 1}),
        "summary": (summarizer(), {"rank": 3}),
    }
    for seed, (name, (task, lora)) in enumerate(made.items()):
        save_bundle(root / name, decoder_spec, task, seed=seed, **lora)
    return root


@pytest.mark.parametrize("fuse", [False, True])
def test_answers_on_cuda_are_those_on_the_cpu(decoder_spec, decoder_tokenizer, bundles, fuse):
    rows = rows_of(decoder_tokenizer, ["two", None, "many", "summary", "spans", "two", None] * 3)
    here, there = (
        Engine(
            load_backbone(decoder_spec, "float32", device=device, fuse=fuse), bundles.__truediv__
        )
        for device in ("cpu", "cuda:0")
    )
    for left, right in zip(there.run(rows), here.run(rows), strict=True):
        assert_same(left, right)


def test_on_cuda_a_mixed_batch_equals_each_row_alone(decoder_spec, decoder_tokenizer, bundles):
    engine = Engine(load_backbone(decoder_spec, "float32", device="cuda:0"), bundles.__truediv__)
    rows = rows_of(decoder_tokenizer, ["two", "many", None, "summary", "spans"] * 2)
    for row, result in zip(rows, engine.run(rows), strict=True):
        assert_same(result, engine.run([row])[0])


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "qwen3", "t5", "bart"])
def test_other_architectures_answer_on_cuda_as_on_the_cpu(tmp_path, architecture):
    spec = describe_backbone(save_backbone(tmp_path / "backbone", architecture))
    make_bundle(tmp_path / "two", spec, classifier(2), 0, Lora(4, dtype=torch.float32))
    make_bundle(tmp_path / "many", spec, classifier(9), 1, Lora(16, dtype=torch.float32))
    rows = rows_of(load_tokenizer(spec.folder), ["two", "many", "two"])
    here, there = (
        Engine(load_backbone(spec, "float32", device=device, fuse=True), tmp_path.__truediv__)
        for device in ("cpu", "cuda:0")
    )
    for left, right in zip(there.run(rows), here.run(rows), strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_on_cuda_a_mixed_batch_equals_each_row_alone(
    decoder_spec, decoder_tokenizer, bundles, kind
):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes can't be imported here")
    backbone = load_backbone(decoder_spec, kind, device="cuda:0", fuse=True)
    engine = Engine(backbone, bundles.__truediv__)
    rows = rows_of(decoder_tokenizer, ["two", "many", None, "summary", "spans"] * 2)
    results = engine.run(rows)
    assert all(result.error is None for result in results)
    scores = [i for i, row in enumerate(rows) if row.generation is None]
    for i in scores:
        alone, mixed = (
            torch.from_numpy(r.output.logits) for r in (engine.run([rows[i]])[0], results[i])
        )
        torch.testing.assert_close(mixed, alone, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_layer_on_cuda_computes_with_its_dequantised_weights(kind):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes can't be imported here")
    torch.manual_seed(0)
    weight, x = torch.randn(128, 256, device="cuda:0") / 16, torch.randn(5, 256, device="cuda:0")
    layer = quantized_linear(weight, None, kind)
    expected = x.double() @ layer.dequantized(torch.float32).double().T
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-4, rtol=1e-4)
    assert (layer.dequantized(torch.float32) - weight).norm() < 0.12 * weight.norm()


def test_rows_beyond_the_devices_memory_are_split_and_the_engine_lives_on(
    decoder_spec, decoder_tokenizer, bundles, monkeypatch
):
    """The device is left with too little for a pass over all rows' tokens at once, and enough for a few rows'."""
    limits = EngineLimits(step_tokens=2**16, max_running=512, cache_bytes=2**22)
    backbone = load_backbone(decoder_spec, "float32", device="cuda:0")
    engine = Engine(backbone, bundles.__truediv__, limits)
    row = rows_of(decoder_tokenizer, ["two"])[0]
    expected = engine.run([row])[0]
    ids = (list(row.token_ids) * 100)[:200]
    rows = [Row(f"long-{i}", ids, "two") for i in range(300)]
    alone = engine.run([Row("alone", ids, "two")])[0]
    splits, halve = [], engine._advance_in_halves
    monkeypatch.setattr(
        engine, "_advance_in_halves", lambda parts: (splits.append(len(parts)), halve(parts))
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24 * 2**20) / total)
    try:
        for result in engine.run(rows):
            assert_same(result, alone)
        assert splits, "the memory sufficed"
        assert_same(engine.run([row])[0], expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
