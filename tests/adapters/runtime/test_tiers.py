"""Adapters on their way in: a store that is slow or away holds up nobody but those who need it."""

import threading

import pytest

from adapters.backbone import load_backbone
from adapters.errors import StorageFull, Unavailable
from adapters.runtime import tiers
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from tests.rows import rows_of


class Store:
    """Gives folders of bundles; what is in ``hanging`` comes when the store is let go on."""

    def __init__(self, folder, hanging=()):
        self._folder = folder
        self._hanging = hanging
        self._is_open = threading.Event()
        self.threads = {}
        self.num_fetches = 0
        self.error = None

    def fetch(self, name):
        self.num_fetches += 1
        self.threads[name] = threading.current_thread()
        if name in self._hanging:
            self._is_open.wait()
        if self.error is not None:
            raise self.error
        return self._folder / name

    def go_on(self):
        self._is_open.set()


@pytest.fixture
def store_with(bundles):
    stores = []

    def make(*hanging):
        stores.append(Store(bundles, hanging))
        return stores[-1]

    yield make
    for store in stores:
        store.go_on()


def engine_on(spec, store, **limits):
    limits = EngineLimits(**limits)
    return Engine(load_backbone(spec, "float32"), store.fetch, limits, use_kernels=False)


def step_until(engine, condition):
    """Step until a condition holds, as a worker does; not for ever if it never will."""
    for _ in range(6000):
        if condition():
            return
        engine.step()
        engine.wait_for_loads(0.005)
    raise AssertionError("it never came")


def answer(engine, row):
    """Return a row's result while others may wait."""
    engine.submit(row)
    results = []
    for _ in range(6000):
        results += [result for result in engine.step() if result.row_id == row.row_id]
        if results:
            return results[0]
        engine.wait_for_loads(0.005)
    raise AssertionError("it was never answered")


def is_pinned(engine, name):
    return name in engine._bank and engine._bank._residents[name].is_pinned


def test_a_slow_fetch_keeps_no_other_adapter_out(decoder_spec, decoder_tokenizer, store_with):
    store = store_with("many")
    engine = engine_on(decoder_spec, store)
    slow, other = rows_of(decoder_tokenizer, ["many", "two"])
    engine.submit(slow)
    engine.step()
    assert answer(engine, other).error is None
    store.go_on()
    step_until(engine, lambda: not engine.num_rows)


def test_nothing_waits_for_a_fetch_when_the_engine_or_its_process_ends(decoder_spec, store_with):
    store = store_with("many")
    engine = engine_on(decoder_spec, store)
    engine.warm("many")
    step_until(engine, lambda: store.threads)
    engine.close()
    assert store.threads["many"].daemon  # Python waits for all others


def test_fetches_that_take_long_give_up_their_turns(
    decoder_spec, decoder_tokenizer, store_with, monkeypatch
):
    store = store_with(*(f"slow-{i}" for i in range(tiers.MAX_LOADS)))
    engine = engine_on(decoder_spec, store)
    for i in range(tiers.MAX_LOADS):
        engine.warm(f"slow-{i}")
    step_until(engine, lambda: len(store.threads) == tiers.MAX_LOADS)
    monkeypatch.setattr(tiers, "SLOW_SECONDS", 0.0)
    assert answer(engine, rows_of(decoder_tokenizer, ["two"])[0]).error is None


@pytest.mark.parametrize("error", [Unavailable("It is away."), StorageFull("It is full.")])
def test_a_pin_outlasts_a_store_that_is_away(decoder_spec, store_with, monkeypatch, caplog, error):
    monkeypatch.setattr(tiers, "RETRY_SECONDS", 0.0)
    store = store_with()
    engine = engine_on(decoder_spec, store)
    store.error = error
    engine.pin("two", pinned=True)
    step_until(engine, lambda: store.num_fetches == 3)
    assert error.message in caplog.text
    store.error = None
    step_until(engine, lambda: engine.is_idle)
    assert is_pinned(engine, "two")


def test_a_store_that_is_away_is_not_asked_for_a_pin_without_a_pause(decoder_spec, store_with):
    store = store_with()
    engine = engine_on(decoder_spec, store)
    store.error = Unavailable("It is away.")
    engine.pin("two", pinned=True)
    step_until(engine, lambda: store.num_fetches and not engine._tiers.is_loading)
    for _ in range(20):
        engine.step()
    assert store.num_fetches == 1
    assert not engine.is_idle  # it will be asked again


def test_a_pinned_adapter_that_a_row_brings_in_during_the_pause_is_pinned(
    decoder_spec, decoder_tokenizer, store_with
):
    store = store_with()
    engine = engine_on(decoder_spec, store)
    store.error = Unavailable("It is away.")
    engine.pin("two", pinned=True)
    step_until(engine, lambda: store.num_fetches and not engine._tiers.is_loading)
    store.error = None
    answer(engine, rows_of(decoder_tokenizer, ["two"])[0])
    assert is_pinned(engine, "two")
    assert engine.is_idle


def test_a_pin_without_a_place_beside_others_waits_for_one(decoder_spec, store_with, caplog):
    engine = engine_on(decoder_spec, store_with(), bank_slots=1)
    engine.pin("two", pinned=True)
    step_until(engine, lambda: engine.is_idle)
    engine.pin("many", pinned=True)
    step_until(engine, lambda: engine.is_idle)
    assert caplog.text.count("many: The adapter finds no place") == 1
    engine.pin("two", pinned=False)
    step_until(engine, lambda: engine.is_idle)
    assert is_pinned(engine, "many")


@pytest.mark.parametrize("names", [("two", "many"), ("many", "two")])
def test_more_adapters_are_pinned_than_are_read_at_once(
    decoder_spec, store_with, monkeypatch, names
):
    monkeypatch.setattr(tiers, "MAX_LOADS", 1)
    store = store_with(*names)
    engine = engine_on(decoder_spec, store)
    for name in names:
        engine.pin(name, pinned=True)
        engine.step()
    store.go_on()
    step_until(engine, lambda: engine.is_idle)
    assert all(is_pinned(engine, name) for name in names)
