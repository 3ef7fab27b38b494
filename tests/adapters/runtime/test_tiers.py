"""Adapters on their way in: a store that is slow or away holds up nobody but those who need it."""

import threading

import pytest

from adapters.backbone import load_backbone
from adapters.runtime import tiers
from adapters.runtime.engine import Engine
from tests.rows import rows_of


class Store:
    """Gives folders of bundles; what is in ``hanging`` comes when the store is let go on."""

    def __init__(self, folder, hanging=()):
        self._folder = folder
        self._hanging = hanging
        self._is_open = threading.Event()
        self.threads = {}

    def fetch(self, name):
        self.threads[name] = threading.current_thread()
        if name in self._hanging:
            self._is_open.wait()
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


def engine_on(spec, store):
    return Engine(load_backbone(spec, "float32"), store.fetch, use_kernels=False)


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
