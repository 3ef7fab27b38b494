"""What a device that runs out of memory, or is lost, does to rows; raised by the tests, for none can count on one."""

import pytest
import torch

from adapters.errors import Overloaded
from tests.rows import assert_same, rows_of


def test_a_pass_that_does_not_fit_the_devices_memory_is_split(
    engine, decoder_tokenizer, monkeypatch
):
    rows = rows_of(decoder_tokenizer, [None, "two", "summary", "many", "spans", "other"])
    engine.run(rows)
    expected = engine.run(rows)
    run, sizes = engine._forward.run, []

    def fits_three(parts):
        sizes.append(len(parts))
        if len(parts) > 3 or any(part.active.row.adapter == "many" for part in parts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(parts)

    monkeypatch.setattr(engine._forward, "run", fits_three)
    results = engine.run(rows)
    assert max(sizes) == 6
    for row, left, right in zip(rows, results, expected, strict=True):
        if row.adapter == "many":
            assert isinstance(left.error, Overloaded)
        else:
            assert_same(left, right)


def test_a_language_head_that_does_not_fit_the_devices_memory_is_split(
    engine, decoder_tokenizer, monkeypatch
):
    rows = rows_of(decoder_tokenizer, [None, "summary", "two", "other", "summary", None])
    engine.run(rows)
    expected = engine.run(rows)
    head, sizes = engine.backbone.next_token_logits, []

    def fits_two(hidden_ND):
        sizes.append(len(hidden_ND))
        if len(hidden_ND) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return head(hidden_ND)

    monkeypatch.setattr(engine.backbone, "next_token_logits", fits_two)
    for left, right in zip(engine.run(rows), expected, strict=True):
        assert_same(left, right)
    assert max(sizes) > 2

    def fits_none(hidden_ND):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.backbone, "next_token_logits", fits_none)
    for row, left, right in zip(rows, engine.run(rows), expected, strict=True):
        if row.generation:
            assert isinstance(left.error, Overloaded)
        else:
            assert_same(left, right)


@pytest.mark.parametrize("where", ["_forward.run", "_answers.read", "_bank.apply_head"])
def test_a_lost_device_is_not_taken_for_rows_that_fail(
    engine, decoder_tokenizer, monkeypatch, where
):
    def fail(*_):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    part, method = where.split(".")
    monkeypatch.setattr(getattr(engine, part), method, fail)
    with pytest.raises(torch.AcceleratorError):
        engine.run(rows_of(decoder_tokenizer, [None, "two"]))


def test_a_head_without_room_in_the_devices_memory_ends_its_row_only(
    engine, decoder_tokenizer, monkeypatch
):
    rows = rows_of(decoder_tokenizer, ["two", "two", "summary", "two"])
    expected = engine.run(rows)
    head, calls = engine._bank.apply_head, []

    def fail_once(digest, hidden_TD):
        calls.append(digest)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return head(digest, hidden_TD)

    monkeypatch.setattr(engine._bank, "apply_head", fail_once)
    results = engine.run(rows)
    (failed,) = [result for result in results if result.error is not None]
    assert isinstance(failed.error, Overloaded)
    for left, right in zip(results, expected, strict=True):
        if left is not failed:
            assert_same(left, right)
