"""Rows that begin alike share blocks: same answers, less work, nobody else's keys and values, bounded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.runtime.active import Active, Part
from adapters.runtime.cache import KeyValueCache
from adapters.runtime.engine import Engine
from adapters.runtime.limits import EngineLimits
from adapters.runtime.places import Places
from adapters.runtime.prefix import chain_keys
from adapters.runtime.rows import Row
from adapters.runtime.spans import BLOCK
from adapters.tasks.base import Generation
from tests.rows import assert_same

CONTEXT = "Ada Lovelace wrote the first program in 1843. " * 3


def rows_about(tokenizer, adapter, questions, prefix=CONTEXT, tag=""):
    generation = Generation(6, ())
    return [
        Row(f"{tag}{i}", tokenizer.encode(prefix + q).ids, adapter, generation)
        for i, q in enumerate(questions)
    ]


def make(spec, bundles, prefix_bytes, **limits):
    limits = EngineLimits(prefix_bytes=prefix_bytes, **limits)
    return Engine(load_backbone(spec, "float32"), lambda name: bundles / name, limits)


@pytest.mark.parametrize("adapter", [None, "summary"])
def test_answers_are_those_without_a_cache_and_the_context_is_computed_once(
    decoder_spec, bundles, decoder_tokenizer, adapter
):
    rows = rows_about(decoder_tokenizer, adapter, ["Who?", "When did she?", "What was it?"] * 3)
    plain, sharing = make(decoder_spec, bundles, 0), make(decoder_spec, bundles, 2**20)
    for left, right in zip(sharing.run(rows), plain.run(rows), strict=True):
        assert_same(left, right)
    context = len(decoder_tokenizer.encode(CONTEXT).ids)
    assert plain.stats.tokens - sharing.stats.tokens >= 8 * (context - 2 * BLOCK)


@pytest.mark.parametrize("length", [2 * BLOCK + 1, 3 * BLOCK + 1, 3 * BLOCK + 2])
def test_a_prompt_is_answered_the_same_the_second_time_to_the_last_bit(
    decoder_spec, bundles, length
):
    limits = EngineLimits(prefix_bytes=2**20)
    engine = Engine(load_backbone(decoder_spec, "float32", fuse=True), bundles.__truediv__, limits)
    generation = Generation(4, (), num_logprobs=5)
    for seed in range(4):
        ids = [(7 * i + 31 * seed) % 300 + 5 for i in range(length)]
        first, second = (
            engine.run([Row(name, ids, "summary", generation)])[0].output for name in "ab"
        )
        assert first.logprobs == second.logprobs
    assert engine._places.prefix.num_hits > 0


@pytest.mark.parametrize("by_kernels", [True, False])
@pytest.mark.parametrize("chunk", [2 * BLOCK + 8, 256])
def test_a_row_whose_numbers_are_not_finite_leaves_nothing_to_rows_that_begin_alike(
    decoder_spec, by_kernels, chunk
):
    backbone = load_backbone(decoder_spec, "float32")
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[50] = float("nan")
    limits = EngineLimits(prefix_bytes=2**19, step_tokens=chunk, chunk_tokens=chunk)
    engine = Engine(backbone, lambda name: name, limits, use_kernels=by_kernels)
    begin = [5 + i % 40 for i in range(3 * BLOCK)]
    spoiled = Row("spoiled", [*begin, *[50] * 3, *[70] * 20], None, Generation(3, ()))
    waits = Row("waits", [*begin, *[72] * 20], None, Generation(3, ()))
    results = engine.run([spoiled, waits])
    later = engine.run([Row("later", [*begin, *[71] * 20], None, Generation(3, ()))])[0]
    assert [result.error is None for result in results] == [False, True]
    assert later.error is None


def test_another_adapter_shares_nothing(decoder_spec, bundles, decoder_tokenizer):
    engine = make(decoder_spec, bundles, 2**20)
    engine.run(rows_about(decoder_tokenizer, None, ["Who?"]))
    engine.run(rows_about(decoder_tokenizer, "summary", ["Who?"]))
    assert engine._places.prefix.num_hits == 0


def test_rows_that_end_early_leave_no_promise_behind(decoder_spec, bundles, decoder_tokenizer):
    engine = make(decoder_spec, bundles, 2**20, step_tokens=BLOCK, chunk_tokens=BLOCK)
    first, second = rows_about(decoder_tokenizer, None, ["Who?", "Who?"])
    engine.submit(first)
    engine.step()
    engine.submit(second)
    engine.step()
    assert len(engine._running) == 1
    engine.cancel(first.row_id)
    results = []
    while engine.num_rows:
        results += engine.step()
    assert results[0].output.token_ids == engine.run([first])[0].output.token_ids


def test_keys_differ_with_adapter_and_with_all_that_stands_before():
    ids = list(range(3 * BLOCK + 2))
    keys = chain_keys("a", ids)
    assert len(keys) == 3
    assert len(chain_keys("a", ids[:-1])) == 2, "two tokens are computed: one alone is decoding"
    assert chain_keys("a", [*ids[: 2 * BLOCK], 9, 9])[:2] == keys[:2]
    assert not set(keys) & set(chain_keys("b", ids))
    assert not set(keys) & set(chain_keys("a", [99, *ids[1:]]))


actions = st.lists(
    st.tuples(st.sampled_from(["start", "advance", "end"]), st.integers(0, 7)), max_size=80
)


@given(actions, st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_each_block_is_free_or_held_and_a_shared_one_holds_the_same(
    actions, kept_blocks
):
    """Blocks are filled by hand with the tokens they stand for, so that a wrong share is seen."""
    cache = KeyValueCache(1, 1, 1, size_bytes=24 * 2 * 4 * BLOCK, dtype=torch.float32)
    limits = EngineLimits(max_running=4, prefix_bytes=kept_blocks * cache.block_bytes)
    places = Places(cache, limits)
    running, content = [], {}
    for number, (action, i) in enumerate(actions):
        if action == "start":
            ids = [i % 2] * (BLOCK * (1 + i % 3)) + [i] * (i + 1)
            row = Row(f"{number}", ids, "ab"[i % 2], Generation(4, ()))
            active = places.take(row, running)
            if active is not None:
                running.append(active)
                for block, start in zip(
                    active.blocks, range(0, active.num_done, BLOCK), strict=False
                ):
                    assert content[block] == ("ab"[i % 2], tuple(ids[: start + BLOCK]))
        elif running and action == "advance":
            active = running[i % len(running)]
            if active.num_pending:
                places.computed(Part(active, active.num_pending), True)
                ids = tuple(active.row.token_ids)
                for n, block in enumerate(active.blocks):
                    content.setdefault(block, None)
                    if (n + 1) * BLOCK <= len(ids):
                        content[block] = (active.row.adapter, ids[: (n + 1) * BLOCK])
        elif running:
            places.give_back(running.pop(i % len(running)))
        held = [block for active in running for block in active.blocks]
        free = set(cache._free)
        assert len(free) == len(cache._free)
        assert not free & set(held)
        assert len(free) + len(set(held) | set(places.prefix._blocks.values())) == cache.num_blocks
        assert places.prefix.num_kept <= kept_blocks
    for active in running:
        places.give_back(active)
    places.prefix.shrink_to(0)
    assert cache.num_free_blocks == cache.num_blocks
    assert not places.prefix._pending


def test_a_flood_on_one_adapter_leaves_a_place_for_another(decoder_spec):
    limits = EngineLimits(max_running=8, prefix_bytes=0)
    cache = KeyValueCache(1, 1, 1, size_bytes=2**20, dtype=torch.float32)
    places, running = Places(cache, limits), []
    while active := places.take(Row("x", [1] * 8, "a", Generation(8, ())), running):
        running.append(active)
    assert len(running) == 6
    assert isinstance(places.take(Row("y", [1], "b", Generation(8, ())), running), Active)


def small_places(num_blocks, kept_blocks):
    cache = KeyValueCache(1, 1, 1, size_bytes=num_blocks * 2 * 4 * BLOCK, dtype=torch.float32)
    return Places(cache, EngineLimits(prefix_bytes=kept_blocks * cache.block_bytes))


def prompt(context, num_blocks):
    return [context] * (num_blocks * BLOCK) + [99, 99]


def begin(places, ids, num_new=1):
    """Let a row in and compute its prompt; return it and how many of its tokens were there already."""
    active = places.take(Row("row", ids, None, Generation(num_new, ())), [])
    num_known = active.num_done
    places.computed(Part(active, active.num_pending), True)
    return active, num_known


def ask(places, ids):
    """Answer a row that writes one token; return how many tokens of its prompt were there already."""
    active, num_known = begin(places, ids)
    places.give_back(active)
    return num_known


@pytest.mark.parametrize("kept_blocks", [10, 9, 4])
def test_of_a_context_longer_than_the_bound_the_beginning_is_kept(kept_blocks):
    places = small_places(40, kept_blocks)
    assert ask(places, prompt(1, 10)) == 0
    assert [ask(places, prompt(1, 10)) for _ in range(3)] == [kept_blocks * BLOCK] * 3


def test_the_ends_of_chains_make_room_before_their_beginnings():
    places = small_places(10, 8)
    ask(places, prompt(1, 4))
    ask(places, prompt(2, 4))
    assert ask(places, prompt(3, 2)) == 0
    assert ask(places, prompt(1, 2)) == 2 * BLOCK
    begin(places, prompt(4, 3))  # the cache itself is full now
    assert ask(places, prompt(1, 1)) == BLOCK


def test_a_row_that_decodes_pushes_nothing_out():
    places = small_places(40, 6)
    active, _ = begin(places, prompt(1, 10), num_new=9 * BLOCK)
    ask(places, prompt(2, 3))
    for _ in range(8 * BLOCK):
        active.generated.append(5)
        places.computed(Part(active, 1), True)
        assert ask(places, prompt(2, 3)) == 3 * BLOCK


def test_a_prompt_in_parts_keeps_its_beginning_before_its_end():
    places = small_places(40, 6)
    active = places.take(Row("row", prompt(1, 5), None, Generation(1, ())), [])
    for num_new in (2 * BLOCK, 2 * BLOCK, BLOCK + 2):
        places.computed(Part(active, num_new), True)
    ask(places, prompt(2, 3))
    assert ask(places, prompt(1, 5)) == 3 * BLOCK


def generating(name, num_blocks):
    """A row of an adapter of its own that needs so many blocks."""
    return Row(name, [5] * 8, name, Generation(num_blocks * BLOCK - 8, ()))


def test_a_row_that_waits_for_blocks_keeps_its_turn_while_all_places_are_taken():
    cache = KeyValueCache(1, 1, 1, size_bytes=8 * 2 * 4 * BLOCK, dtype=torch.float32)
    places = Places(cache, EngineLimits(max_running=2, prefix_bytes=0))
    running = [places.take(generating("a", 3), [])]
    assert places.take(generating("big", 6), running) is None
    running.append(places.take(generating("b", 2), running))
    places.begin_step()
    assert places.take(generating("big", 6), running) is None  # there is no place
    places.give_back(running.pop(0))
    places.begin_step()
    assert places.take(generating("c", 2), running) is None
    assert places.take(generating("big", 6), running) is not None


def test_a_row_that_waits_for_blocks_keeps_its_turn_when_another_asks_before_it():
    cache = KeyValueCache(1, 1, 1, size_bytes=8 * 2 * 4 * BLOCK, dtype=torch.float32)
    places = Places(cache, EngineLimits(prefix_bytes=0))
    running = [places.take(generating("a", 3), [])]
    assert places.take(generating("big", 6), running) is None
    for name in ("b", "c"):
        places.begin_step()
        assert places.take(generating(name, 2), running) is None
        assert places.take(generating("big", 6), running) is None
