"""Faults stay with their rows, and nothing that runs out or fails stops the engine."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from adapters.backbone import load_backbone
from adapters.errors import InvalidRequest, PredictionFailed, RunPaused, TextTooLong
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.rows import Row
from adapters.runtime.tiers import MAX_LOADS
from adapters.tasks.base import Generation
from tests.bundles import classifier, reseal, save_bundle, summarizer
from tests.rows import assert_same, rows_of


def test_a_popular_adapter_that_generates_lets_another_into_a_full_bank(
    decoder_spec, decoder_tokenizer, bundles, tmp_path
):
    save_bundle(tmp_path / "other", decoder_spec, summarizer(), seed=5, rank=3)
    folders = {"summary": bundles / "summary", "other": tmp_path / "other"}
    limits = EngineLimits(bank_bytes=20_000, max_running=2)
    engine = Engine(load_backbone(decoder_spec, "float32"), folders.__getitem__, limits)
    flood = rows_of(decoder_tokenizer, ["summary"] * 40, max_new_tokens=6)
    for row in flood:
        engine.submit(row)
    engine.step()
    ids = decoder_tokenizer.encode("Late.").ids
    engine.submit(Row("late", ids, "other", Generation(4, decoder_tokenizer.end_ids)))
    done = []
    while "late" not in done:
        done += [result.row_id for result in engine.step()]
        engine.wait_for_loads()
        assert engine.num_rows, "the late row must come before the flood is over"
    assert len(done) < len(flood)


def test_a_failing_installation_ends_its_own_rows_only(engine, decoder_tokenizer, monkeypatch):
    install = engine._bank.install

    def fail(digest, bundle):
        if digest == "many":
            raise MemoryError("no room")
        install(digest, bundle)

    monkeypatch.setattr(engine._bank, "install", fail)
    results = engine.run(rows_of(decoder_tokenizer, ["two", "many", None]))
    assert [result.error is None for result in results] == [True, False, True]
    assert engine.run(rows_of(decoder_tokenizer, ["two"]))[0].error is None


def test_an_adapter_larger_than_the_bank_is_an_error(decoder_spec, decoder_tokenizer, bundles):
    limits = EngineLimits(bank_bytes=8000)
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, limits)
    result = engine.run(rows_of(decoder_tokenizer, ["two"]))[0]
    assert "8000" in result.error.message


def test_a_bundle_that_cannot_be_loaded_fails_its_own_rows_only(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, ["two", "not-there", "many", "not-there"])
    results = engine.run(rows)
    assert [result.error is None for result in results] == [True, False, True, False]
    assert "could not be loaded" in results[1].error.message
    assert "manifest.json" in results[1].error.message


def test_a_row_whose_numbers_are_not_finite_fails_alone(
    tmp_path, decoder_spec, decoder_tokenizer, bundles
):
    shutil.copytree(bundles / "two", tmp_path / "huge")
    save_bundle(tmp_path / "huge", decoder_spec, classifier(2), seed=9)
    weights = load_file(tmp_path / "huge" / "adapter_model.safetensors")
    reseal(tmp_path / "huge", {k: torch.full_like(v, 1e30) for k, v in weights.items()})
    engine = Engine(
        load_backbone(decoder_spec, "float32"),
        lambda name: (tmp_path if name == "huge" else bundles) / name,
    )
    rows = rows_of(decoder_tokenizer, ["huge", "two", None, "many"])
    results = engine.run(rows)
    assert isinstance(results[0].error, PredictionFailed)
    for row, result in list(zip(rows, results, strict=True))[1:]:
        assert_same(result, engine.run([row])[0])


def test_a_cancelled_row_frees_what_it_holds(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, [None, "summary", "two"], max_new_tokens=50)
    free = engine._cache.num_free_blocks
    for row in rows:
        engine.submit(row)
    while not engine._running:
        engine.step()
        engine.wait_for_loads()
    for row in rows:
        engine.cancel(row.row_id)
    assert engine.num_rows == len(engine._finished)
    assert engine._cache.num_free_blocks == free
    assert all(not r.users for r in engine._bank._residents.values())


def test_a_head_that_fails_ends_its_own_rows_only(engine, decoder_tokenizer, monkeypatch):
    apply_head = engine._bank.apply_head

    def fail(digest, hidden_TD):
        return 1 / 0 if digest == "many" else apply_head(digest, hidden_TD)

    monkeypatch.setattr(engine._bank, "apply_head", fail)
    results = engine.run(rows_of(decoder_tokenizer, ["two", "many", "summary", "two"]))
    assert [result.error is None for result in results] == [True, False, True, True]
    assert "ZeroDivisionError" in results[1].error.message


def test_a_stop_string_that_cannot_be_looked_for_fails_its_own_row(
    decoder_spec, decoder_tokenizer, bundles
):
    engine = Engine(
        load_backbone(decoder_spec, "float32"), lambda name: bundles / name, decode=lambda _: 1 / 0
    )
    rows = rows_of(decoder_tokenizer, ["summary"] * 3, max_new_tokens=5)
    rows[1] = replace(rows[1], generation=replace(rows[1].generation, stop=("x",)))
    assert [result.error is None for result in engine.run(rows)] == [True, False, True]


def test_a_pass_that_fails_half_way_ends_its_rows_and_the_engine_goes_on(
    engine, decoder_tokenizer, monkeypatch
):
    rows = rows_of(decoder_tokenizer, [None, "two", "summary", "many"], max_new_tokens=3)
    good = engine.run(rows)
    monkeypatch.setattr(engine._bank, "apply_head", lambda *_: 1 / 0)
    failed = engine.run([rows[1], rows[3]])
    assert all("ZeroDivisionError" in result.error.message for result in failed)
    assert all(
        result.error is None or "Zero" in result.error.message for result in engine.run(rows)
    )
    monkeypatch.undo()
    for left, right in zip(engine.run(rows), good, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("place", ["_forward.run", "_bank.apply_head", "_answers._append"])
def test_a_signal_that_stops_a_run_is_no_fault_of_a_row(
    engine, decoder_tokenizer, monkeypatch, place
):
    """Training tests its adapter by an engine, and pauses from a signal handler: wherever the engine is just then."""

    def pause(*_):
        raise RunPaused("a signal came")

    engine.run(rows_of(decoder_tokenizer, ["two", "summary"]))
    owner, name = place.split(".")
    monkeypatch.setattr(getattr(engine, owner), name, pause)
    with pytest.raises(RunPaused):
        engine.run(rows_of(decoder_tokenizer, ["two", "summary"]))


def test_aborting_ends_every_row_and_frees_what_they_held(engine, decoder_tokenizer):
    rows = rows_of(decoder_tokenizer, [None, "summary", "two"], max_new_tokens=50)
    free = engine._cache.num_free_blocks
    for row in rows:
        engine.submit(row)
    engine.step()
    ended = engine.abort(RuntimeError("no"))
    assert {result.row_id for result in ended} == {row.row_id for row in rows}
    assert engine.num_rows == 0
    assert engine._cache.num_free_blocks == free
    assert all(result.output for result in engine.run(rows))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (Row("a", [], "two"), InvalidRequest),
        (Row("a", [5] * 300, "two"), TextTooLong),
        (Row("a", [5] * 10, None, Generation(250, (2,))), TextTooLong),
        (Row("a", [5] * 10, None), InvalidRequest),
        (Row("a", [5, 100_000], "two"), InvalidRequest),
    ],
    ids=[
        "empty",
        "too-long",
        "no-room-for-the-answer",
        "no-adapter-and-no-generation",
        "no-such-token",
    ],
)
def test_a_row_that_nothing_could_answer_is_refused_at_once(engine, row, error):
    with pytest.raises(error):
        engine.submit(row)
    assert engine.num_rows == 0


def test_an_encoder_refuses_to_generate(encoder_spec):
    engine = Engine(load_backbone(encoder_spec, "float32"), lambda name: None)
    with pytest.raises(InvalidRequest, match="can't generate"):
        engine.submit(Row("a", [5, 6], None, Generation(4, (2,))))


def test_a_pinned_adapter_comes_in_unasked_and_stays(decoder_spec, decoder_tokenizer, bundles):
    limits = EngineLimits(bank_slots=2, host_bytes=0)
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: bundles / name, limits)
    engine.pin("two", pinned=True)
    while "two" not in engine._bank:
        engine.step()
        engine.wait_for_loads()
    for name in ("many", "other", "spans"):
        engine.run(rows_of(decoder_tokenizer, [name]))
        assert "two" in engine.snapshot().resident_adapters
    engine.pin("two", pinned=False)
    for name in ("many", "other"):
        engine.run(rows_of(decoder_tokenizer, [name]))
    assert engine.snapshot().resident_adapters == ("many", "other")


def test_a_pin_on_what_cannot_be_loaded_is_dropped(engine, decoder_tokenizer, caplog):
    engine.pin("not-there", pinned=True)
    engine.step()
    while not engine.is_idle:
        engine.wait_for_loads()
        engine.step()
    assert "not-there" in caplog.text
    assert engine.run(rows_of(decoder_tokenizer, ["two"]))[0].error is None


def test_more_adapters_are_warmed_than_are_read_at_once(tmp_path, decoder_spec):
    backbone = load_backbone(decoder_spec, "float32")
    names = [f"warm-{i}" for i in range(MAX_LOADS + 3)]
    for name in names:
        save_bundle(tmp_path / name, decoder_spec, classifier(2), backbone=backbone)
    engine = Engine(load_backbone(decoder_spec, "float32"), lambda name: tmp_path / name)
    for name in names:
        engine.warm(name)
    while not engine.is_idle:
        engine.step()
        engine.wait_for_loads()
    assert all(name in engine._tiers._host for name in names)


def test_a_warmed_adapter_is_there_at_its_first_row(engine, decoder_tokenizer):
    engine.warm("two")
    engine.step()
    engine._tiers.wait()
    engine.step()
    row = rows_of(decoder_tokenizer, ["two"])[0]
    engine.submit(row)
    assert [result.row_id for result in engine.step()] == [row.row_id]


def test_eight_slots_serve_more_adapters_in_turn_without_reading_them_again(
    decoder_spec, decoder_tokenizer, bundles
):
    fetched = []

    def fetch(name):
        fetched.append(name)
        return bundles / name

    engine = Engine(load_backbone(decoder_spec, "float32"), fetch, EngineLimits(bank_slots=1))
    for _ in range(3):
        for result in engine.run(rows_of(decoder_tokenizer, ["two", "many", "spans", "summary"])):
            assert result.error is None
    assert sorted(fetched) == ["many", "spans", "summary", "two"]


def test_a_row_that_cannot_be_divided_is_not_held_up_by_one_that_generates(
    decoder_spec, decoder_tokenizer, bundles
):
    engine = Engine(load_backbone(decoder_spec, "float32"), bundles.__truediv__)
    engine.run(rows_of(decoder_tokenizer, ["two", "summary"]))
    engine.submit(Row("write", [5] * 8, "summary", Generation(200, ())))
    for i in range(10):
        engine.submit(Row(f"label-{i}", [5 + i] * 100, "two"))
    done, steps = [], 0
    while len(done) < 10:
        done += [result.row_id for result in engine.step()]
        steps += 1
    assert "write" not in done
    assert steps < 30


def test_a_long_scoring_row_that_the_cache_cannot_hold_goes_through_at_once(
    decoder_spec, decoder_tokenizer, bundles
):
    limits = EngineLimits(cache_bytes=2**14, chunk_tokens=32)
    engine = Engine(load_backbone(decoder_spec, "float32"), bundles.__truediv__, limits)
    assert engine._cache.num_blocks * 16 < 200
    row = Row("long", [5] * 200, "two")
    wide = Engine(load_backbone(decoder_spec, "float32"), bundles.__truediv__)
    assert_same(engine.run([row])[0], wide.run([row])[0])


def test_weights_that_overflow_once_scaled_are_refused_and_harm_nobody(
    tmp_path, decoder_spec, decoder_tokenizer, bundles
):
    save_bundle(tmp_path / "huge", decoder_spec, classifier(2), seed=9, alpha=64)
    weights = load_file(tmp_path / "huge" / "adapter_model.safetensors")
    reseal(tmp_path / "huge", {k: torch.full_like(v, 1e38) for k, v in weights.items()})
    engine = Engine(
        load_backbone(decoder_spec, "float32"),
        lambda name: (tmp_path if name == "huge" else bundles) / name,
        use_kernels=False,
    )
    bad, good = engine.run(rows_of(decoder_tokenizer, ["huge", "two"]))
    assert "lower learning rate" in bad.error.message
    assert good.error is None


def test_an_adapter_without_a_place_beside_the_pinned_ones_is_told_so(
    decoder_spec, decoder_tokenizer, bundles
):
    limits = EngineLimits(bank_slots=1)
    engine = Engine(load_backbone(decoder_spec, "float32"), bundles.__truediv__, limits)
    engine.pin("two", pinned=True)
    while "two" not in engine._bank:
        engine.step()
        engine.wait_for_loads()
    other, two = engine.run(rows_of(decoder_tokenizer, ["other", "two"]))
    assert "pinned" in other.error.message
    assert two.error is None


def test_a_row_that_needs_much_of_the_cache_is_not_passed_by_for_ever(
    decoder_spec, decoder_tokenizer, bundles
):
    limits = EngineLimits(cache_bytes=2**17, prefix_bytes=0)
    engine = Engine(load_backbone(decoder_spec, "float32"), bundles.__truediv__, limits)
    half = engine._cache.num_blocks * 16 // 2
    for i in range(60):
        engine.submit(Row(f"small-{i}", [5] * 8, "summary", Generation(40, ())))
    for _ in range(5):
        engine.step()
        engine.wait_for_loads()
    engine.submit(Row("big", [6] * 8, None, Generation(min(half, 200), ())))
    done = []
    while "big" not in {a.row.row_id for a in engine._running}:
        done += [result.row_id for result in engine.step()]
        assert len(done) < 40
