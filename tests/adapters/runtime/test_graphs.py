"""Decode passes as a recording runs them: padded, from fixed places; on a CPU what was recorded is computed again."""

import pytest
import torch

from adapters.backbone import load_backbone
from adapters.runtime import engine as engine_module
from adapters.runtime.engine import Engine
from adapters.runtime.graphs import DecodeGraphs
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from tests.bundles import save_bundle, summarizer
from tests.rows import assert_same, rows_of

MIXES = [
    [None, "summary", "other", None, "summary", "summary"],
    [None] * 3,
    ["other"] * 5 + [None],
    ["third", None, "summary", "other", "third"] * 4,
]


class Recorder:
    """Keeps what it was given to record; a replay computes it again, from whatever its inputs are then."""

    def __init__(self):
        self.num_recorded = self.num_replayed = 0

    def __call__(self, compute):
        self.num_recorded += 1
        compute()  # a real recording runs it, too

        def replay():
            self.num_replayed += 1
            return compute()

        return replay


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("graphs")
    lora = {
        "summary": {"rank": 3},
        "other": {"rank": 16, "target_modules": ["q_proj", "v_proj"]},
        "third": {"rank": 5, "last_layers": 1},
    }
    for seed, (name, settings) in enumerate(lora.items()):
        save_bundle(root / name, decoder_spec, summarizer(), seed=seed, **settings)
    return root


@pytest.fixture
def start(monkeypatch, decoder_spec, bundles):
    """Start an engine with torch's attention, as on a GPU; its decode passes go through a recorder if one is given."""
    monkeypatch.setattr(engine_module, "fits_attention", lambda *shape: False)

    def run(record=None, **limits):
        backbone = load_backbone(decoder_spec, "float32", fuse=True)
        engine = Engine(backbone, bundles.__truediv__, EngineLimits(**limits))
        if record is not None:
            graphs = DecodeGraphs(backbone, engine._bank, engine._cache, record)
            engine._forward._graphs = graphs
        return engine

    return run


def generating(tokenizer, adapters, max_new_tokens=20):
    rows = rows_of(tokenizer, adapters)
    generation = Generation(max_new_tokens, tokenizer.end_ids)
    return [Row(row.row_id, row.token_ids, row.adapter, generation) for row in rows]


def test_recorded_passes_give_what_passes_by_hand_give(start, decoder_tokenizer):
    recorder = Recorder()
    recorded, by_hand = start(recorder), start()
    for mix in (*MIXES, MIXES[0]):
        rows = generating(decoder_tokenizer, mix)
        for left, right in zip(recorded.run(rows), by_hand.run(rows), strict=True):
            assert_same(left, right)
    assert recorder.num_replayed > 5 * recorder.num_recorded > 0


def test_an_adapter_that_came_to_another_place_is_read_there(start, decoder_tokenizer):
    """One slot: each row's adapter evicts the one before, and the recording must not remember its addresses."""
    recorder = Recorder()
    recorded, by_hand = start(recorder, bank_slots=1), start()
    for adapter in ["summary", "other", "summary", "third", "other"]:
        row = generating(decoder_tokenizer, [adapter])
        assert_same(recorded.run(row)[0], by_hand.run(row)[0])
    assert recorder.num_recorded == 1


def test_rows_of_padding_touch_nobodys_cache(start, decoder_tokenizer):
    engine = start(Recorder())
    cache = engine._cache
    cache.keys.zero_()
    cache.values.zero_()
    engine.run(generating(decoder_tokenizer, [None] * 5))  # padded to eight
    written = cache.keys[0].abs().sum((1, 2)).nonzero().flatten() // 16
    assert cache.scratch_block in written.tolist()
    assert cache.scratch_block not in range(cache.num_blocks)


def test_what_cant_be_recorded_is_run_by_hand(start, decoder_tokenizer, caplog):
    def fails(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    rows = generating(decoder_tokenizer, MIXES[0])
    for left, right in zip(start(fails).run(rows), start().run(rows), strict=True):
        assert_same(left, right)
    assert len([r for r in caplog.records if "can't be recorded" in r.message]) == 1


def test_a_recording_without_room_ends_no_row(start, decoder_tokenizer):
    """Halved until it fits, as any pass is."""

    class Narrow(Recorder):
        def __call__(self, compute):
            if len(compute.__closure__[0].cell_contents) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(compute)

    rows = generating(decoder_tokenizer, MIXES[0])
    for left, right in zip(start(Narrow()).run(rows), start().run(rows), strict=True):
        assert_same(left, right)
