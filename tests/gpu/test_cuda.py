"""The same engine on CUDA; skipped where there is no device."""

import pytest
import torch

from adapters.backbone import load_backbone
from adapters.runtime.engine import Engine
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.rows import assert_same, rows_of

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
