"""Thousands of rows while adapters load, leave and are replaced: every answer is that of the row alone."""

import random

import pytest

from adapters.backbone import load_backbone
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row, RowResult
from adapters.tasks.base import Generation, Sampling
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.rows import TEXTS, assert_same

SHAPES = [
    (classifier(2), {"rank": 4}),
    (classifier(151), {"rank": 8, "target_modules": ["q_proj", "v_proj"]}),
    (answerer(), {"rank": 16, "last_layers": 1}),
    (summarizer(), {"rank": 3}),
    (classifier(3), {"rank": 64, "target_modules": ["down_proj"]}),
    (summarizer(), {"rank": 8, "target_modules": ["o_proj", "gate_proj"]}),
]


@pytest.fixture(scope="module")
def versions(tmp_path_factory, decoder_spec):
    """Two versions of each shape: the second replaces the first on the way."""
    root = tmp_path_factory.mktemp("versions")
    backbone = load_backbone(decoder_spec, "float32")
    for i, (task, lora) in enumerate(SHAPES):
        for version in (1, 2):
            save_bundle(
                root / f"{i}:{version}",
                decoder_spec,
                task,
                seed=10 * i + version,
                backbone=backbone,
                **lora,
            )
    return root


def kinds(tokenizer):
    """Every (adapter shape or none, text, way to generate) that a row may be."""
    for shape in [*range(len(SHAPES)), None]:
        for text in TEXTS:
            ids = tokenizer.encode(text).ids
            if shape is None or SHAPES[shape][0].name == "summarization":
                yield shape, ids, Generation(5, tokenizer.end_ids)
                yield shape, ids, Generation(7, (), Sampling(temperature=0.9, top_p=0.8, seed=3))
            else:
                yield shape, ids, None


@pytest.mark.parametrize("use_kernels", [False, True], ids=["torch", "kernels"])
def test_every_row_gets_its_own_answer(decoder_spec, decoder_tokenizer, versions, use_kernels):
    draw = random.Random(7)
    backbone = load_backbone(decoder_spec, "float32", fuse=use_kernels)
    calm = Engine(load_backbone(decoder_spec, "float32"), versions.__truediv__, use_kernels=False)
    possible = list(kinds(decoder_tokenizer))
    alone = {}
    for n, (shape, ids, generation) in enumerate(possible):
        for version in (1, 2):
            adapter = None if shape is None else f"{shape}:{version}"
            alone[n, version] = calm.run([Row("solo", ids, adapter, generation)])[0]
    limits = EngineLimits(
        bank_slots=3, host_bytes=60_000, max_running=12, step_tokens=80, chunk_tokens=24,
        fair_tokens=32, cache_bytes=2**17, prefix_bytes=2**15,
    )  # fmt: skip
    busy = Engine(backbone, versions.__truediv__, limits, use_kernels=use_kernels)
    asked, answered, cancelled = {}, {}, set()
    for number in range(1500):
        n = draw.randrange(len(possible))
        shape, ids, generation = possible[n]
        version = 1 if number < 700 else 2
        adapter = None if shape is None else f"{shape}:{version}"
        row = Row(str(number), ids, adapter, generation)
        asked[row.row_id] = alone[n, version]
        busy.submit(row)
        if draw.random() < 0.05:
            gone = str(draw.randrange(number + 1))
            if gone not in answered:
                busy.cancel(gone)
                cancelled.add(gone)
        if draw.random() < 0.5:
            collect(busy, answered)
    while busy.num_rows:
        collect(busy, answered)
        busy.wait_for_loads()
    assert answered.keys() | cancelled == asked.keys()
    for row_id, result in answered.items():
        assert_same(result, asked[row_id])
    assert all(not resident.users for resident in busy._bank._residents.values())
    busy._places.prefix.shrink_to(0)
    assert busy._cache.num_free_blocks == busy._cache.num_blocks


def collect(engine, answered):
    for result in engine.step():
        if isinstance(result, RowResult):
            assert result.row_id not in answered
            answered[result.row_id] = result
