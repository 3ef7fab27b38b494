"""Padded passes: rows keep to themselves, memory is bounded, and padding does not count."""

import pytest
import torch

from adapters.backbone import describe_backbone, load_backbone
from adapters.errors import InvalidRequest
from adapters.runtime import cache, encoder_decoder, padded
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.pack import pack_rows
from adapters.runtime.padded import by_length, pad, spans_of
from adapters.runtime.rows import Row
from adapters.tasks.base import Generation, Labelled
from adapters.tokenizer import load_tokenizer
from tests.bundles import classifier
from tests.rows import TEXTS, assert_same
from tests.tiny import save_backbone
from training.contract import LoraSettings
from training.trainer import build_trainee


@pytest.fixture(scope="module", params=["llama", "t5", "bart"])
def spec(request, tmp_path_factory):
    return describe_backbone(
        save_backbone(tmp_path_factory.mktemp("padded") / request.param, request.param)
    )


@pytest.fixture(scope="module")
def rows(spec):
    tokenizer = load_tokenizer(spec.folder)
    texts = [*TEXTS, TEXTS[1][:40]]
    return [
        Row(f"row-{i}", tokenizer.encode(text).ids, None, Generation(4 + i, ()))
        for i, text in enumerate(texts)
    ]


def build_engine(spec, limits=None):
    return Engine(load_backbone(spec, "float32", is_packed=False), lambda digest: None, limits)


def test_rows_beyond_the_cache_wait_and_are_answered_the_same(spec, rows):
    wide = build_engine(spec)
    tight = build_engine(spec, EngineLimits(cache_bytes=6 * 2**14, max_running=3))
    for left, right in zip(tight.run(rows), wide.run(rows), strict=True):
        assert_same(left, right)
    assert tight.stats.steps > wide.stats.steps


def test_what_lies_in_unused_cells_does_not_matter(spec, rows):
    engine = build_engine(spec, EngineLimits(prefix_bytes=0))
    expected = engine.run(rows)
    engine._cache.keys.fill_(float("nan"))
    engine._cache.values.fill_(float("nan"))
    for left, right in zip(engine.run(rows), expected, strict=True):
        assert_same(left, right)


def test_each_row_alone_gets_what_it_gets_among_others(spec, rows):
    engine = build_engine(spec)
    for row, result in zip(rows, engine.run(rows), strict=True):
        assert_same(engine.run([row])[0], result)


def test_a_cancelled_row_gives_its_blocks_back(spec, rows):
    engine = build_engine(spec, EngineLimits(prefix_bytes=0))
    free = engine._cache.num_free_blocks
    for row in rows:
        engine.submit(row)
    engine.step()
    assert engine._cache.num_free_blocks < free
    for row in rows:
        engine.cancel(row.row_id)
    assert engine._cache.num_free_blocks == free


def test_in_bf16_rows_are_answered_too(spec, rows):
    engine = Engine(load_backbone(spec, "bfloat16", is_packed=False), lambda digest: None)
    assert all(len(r.output.token_ids) == 4 + i for i, r in enumerate(engine.run(rows)))


def test_closing_leaves_the_model_as_it_was(spec):
    backbone = load_backbone(spec, "float32", is_packed=False)
    before = dict(backbone.model.named_modules())
    Engine(backbone, lambda digest: None).close()
    assert dict(backbone.model.named_modules()) == before
    assert not any(module._forward_hooks for module in before.values())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "bert"])
def test_training_on_it_has_the_loss_and_gradients_of_packed_rows(tmp_path, model_type):
    spec = describe_backbone(save_backbone(tmp_path / model_type, model_type))
    rows = [Labelled([5 + i, *range(9, 12 + 7 * i)], [i % 2]) for i in range(4)]
    found = []
    for is_packed in (True, False):
        backbone = load_backbone(spec, "float32", is_packed=is_packed)
        trainee = build_trainee(backbone, LoraSettings(), classifier().head(spec.family), 0)
        backbone.model.eval()
        loss, _ = trainee.loss(rows)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainee.parameters().items()}))
    (packed, gradients), (padded, others) = found
    torch.testing.assert_close(padded, packed, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-4, rtol=1e-3)


def test_a_padded_encoder_can_not_generate(tmp_path):
    engine = build_engine(describe_backbone(save_backbone(tmp_path / "mpnet", "mpnet")))
    with pytest.raises(InvalidRequest, match="encoder"):
        engine.submit(Row("a", [5], None, Generation(1, ())))


def test_rows_are_padded_on_the_right_and_told_apart_by_spans():
    ids, mask = pad([[5, 6], [7]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert spans_of([2, 1], 2) == [(0, 2), (2, 3)]


def test_short_rows_do_not_read_as_much_as_a_long_one_beside_them(spec, monkeypatch):
    """Time and memory of a step would grow with rows times the longest."""
    assert cells_read(spec, False, monkeypatch) < 2 * 2 * (240 + 15 * 20)  # own and source


def test_nor_do_packed_ones_by_torch_alone(decoder_spec, monkeypatch):
    assert cells_read(decoder_spec, True, monkeypatch) < 2 * (240 + 15 * 20)


def test_what_rows_read_at_a_time_is_bounded(spec, monkeypatch):
    is_bounded_alike(spec, False, monkeypatch)


def test_so_is_what_packed_ones_read_by_torch_alone(decoder_spec, monkeypatch):
    is_bounded_alike(decoder_spec, True, monkeypatch)


def is_bounded_alike(spec, is_packed, monkeypatch):
    """Assert that no read takes more than its bound, or than a row alone, and that the answers are those without."""
    lengths = [*[30] * 8, 120]
    free, answers = read_by_rows(spec, is_packed, monkeypatch, lengths)
    cell_bytes = cache.read_cell_bytes(load_backbone(spec, "float32", is_packed=is_packed))
    monkeypatch.setattr(cache, "READ_BYTES", 100 * cell_bytes)
    bounded, same = read_by_rows(spec, is_packed, monkeypatch, lengths)
    assert max(free) >= 8 * 30
    assert {count for count in bounded if count > 100} <= {120, 121, 122}  # the long row by itself
    assert max(count for count in bounded if count < 120) > 50
    assert same == answers


def cells_read(spec, is_packed, monkeypatch):
    """Return how many cells of the cache two steps read, of fifteen short rows beside a long one."""
    return sum(read_by_rows(spec, is_packed, monkeypatch, [240, *[9] * 15])[0])


def read_by_rows(spec, is_packed, monkeypatch, lengths):
    """Return how many cells each read of two steps takes, and the tokens that rows of such lengths are answered."""
    backbone = load_backbone(spec, "float32", is_packed=is_packed)
    engine = Engine(backbone, lambda digest: None, use_kernels=False)
    for i, length in enumerate(lengths):
        engine.submit(Row(f"row-{i}", [5 + i] * length, None, Generation(3, ())))
    done = engine.step()
    with monkeypatch.context() as patch:
        cells = note_cells(patch)
        while not engine.is_idle:
            done += engine.step()
    assert cells
    return cells, {each.row_id: each.output.token_ids for each in done}


def note_cells(monkeypatch):
    """Return a list that takes the number of cells of each read of the cache."""
    cells = []

    def noting(real, name):
        def note(*args, **kwargs):
            read = real(*args, **kwargs)
            cells.append(getattr(read, name).numel())
            return read

        return note

    for module, function, name in (
        (padded, "window", "cells_BP"),
        (encoder_decoder, "window", "cells_BP"),
        (cache, "_padded_reads", "cells_BL"),
    ):
        monkeypatch.setattr(module, function, noting(getattr(module, function), name))
    return cells


def test_rows_of_similar_length_share_a_batch():
    class Part:
        def __init__(self, num_new):
            self.num_new = num_new

    parts = [Part(n) for n in (100, 3, 16, 40, 59)]
    assert [[p.num_new for p in batch] for batch in by_length(parts)] == [[3, 16], [40, 59], [100]]


def test_a_backbone_that_was_loaded_packed_gives_packed_hidden_states_only(decoder_spec):
    packed, padded = (load_backbone(decoder_spec, "float32", is_packed=p) for p in (True, False))
    assert (packed.is_packed, padded.is_packed) == (True, False)
    hidden = packed.hidden_states(torch.arange(5, 9), pack_rows([4]))
    expected = padded.base(torch.arange(5, 9)[None]).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
