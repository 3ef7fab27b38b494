"""Encoder-decoders: a source goes through whole, source and answer have bounds of their own."""

import pytest

from adapters.backbone import describe_backbone, load_backbone
from adapters.errors import TextTooLong, UnsupportedBackbone
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation
from tests.rows import assert_same
from tests.tiny import save_backbone


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return describe_backbone(save_backbone(tmp_path_factory.mktemp("encoder-decoder") / "t5", "t5"))


def test_a_source_is_neither_divided_nor_shared(t5):
    engine = Engine(
        load_backbone(t5, "float32"),
        lambda digest: None,
        EngineLimits(step_tokens=32, chunk_tokens=16),
    )
    source = list(range(5, 105))
    rows = [Row(f"row-{i}", source, None, Generation(3, ())) for i in range(3)]
    left, *others = engine.run(rows)
    for right in others:
        assert_same(left, right)
    assert engine._places.prefix.num_kept == 0
    scored = engine.run([Row("scored", source, embed="mean")])[0]
    assert scored.output.embedding.shape == (32,)


def test_source_and_answer_of_an_encoder_decoder_have_room_each(t5):
    engine = Engine(load_backbone(t5, "float32"), lambda digest: None)
    limit = t5.max_tokens
    engine.submit(Row("fits", [5] * limit, None, Generation(limit, ())))
    with pytest.raises(TextTooLong, match=f"'{limit + 1}'"):
        engine.submit(Row("long", [5] * (limit + 1), None, Generation(1, ())))
    with pytest.raises(TextTooLong, match=f"'{limit + 1}'"):
        engine.submit(Row("writes", [5], None, Generation(limit + 1, ())))


def test_an_answer_that_no_cache_could_hold_is_refused(t5):
    engine = Engine(
        load_backbone(t5, "float32"), lambda digest: None, EngineLimits(cache_bytes=2**15)
    )
    with pytest.raises(TextTooLong, match="cache_bytes"):
        engine.submit(Row("long", [5] * 100, None, Generation(100, ())))


def test_t5_in_half_precision_is_refused_for_it_keeps_some_layers_out(t5):
    with pytest.raises(UnsupportedBackbone, match="float32 or bfloat16"):
        load_backbone(t5, "float16")


def test_a_decoder_that_can_not_start_is_refused(tmp_path):
    folder = save_backbone(tmp_path / "t5", "t5", decoder_start_token_id=None)
    with pytest.raises(UnsupportedBackbone, match="decoder_start_token_id"):
        load_backbone(describe_backbone(folder), "float32")
