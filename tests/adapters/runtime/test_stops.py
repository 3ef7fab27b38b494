"""A stop string is found at the very token that completes it, and nowhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.runtime.stops import StopFinder
from adapters.text_stream import BROKEN

TEXT = st.text(st.one_of(st.sampled_from("ab 北é😀"), st.characters(codec="utf-8")), max_size=80)
STOPS = st.lists(
    st.text(st.sampled_from("ab 北é😀"), min_size=1, max_size=5), min_size=1, max_size=3
)


def first_found(decode, token_ids, stops, size=1):
    """Return after how many tokens a stop string is found; None if never."""
    finder = StopFinder(stops, decode)
    for end in range(size, len(token_ids) + size, size):
        if finder.feed(token_ids[end - size : end]):
            return min(end, len(token_ids))
    return None


def first_contained(decode, token_ids, stops):
    ends = range(1, len(token_ids) + 1)
    return next((n for n in ends if any(s in decode(token_ids[:n]) for s in stops)), None)


@settings(deadline=None)
@given(text=TEXT, stops=STOPS)
def test_stops_in_a_text_are_found_at_the_token_that_completes_them(decoder_tokenizer, text, stops):
    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    decode = decoder_tokenizer.decode
    assert first_found(decode, token_ids, stops) == first_contained(decode, token_ids, stops)


@settings(deadline=None)
@given(token_ids=st.lists(st.integers(0, 350), max_size=120), stops=STOPS)
def test_stops_in_any_tokens_are_found_at_the_token_that_completes_them(
    decoder_tokenizer, token_ids, stops
):
    decode = decoder_tokenizer.decode
    assert first_found(decode, token_ids, stops) == first_contained(decode, token_ids, stops)


@settings(deadline=None)
@given(text=TEXT, stops=STOPS, size=st.integers(1, 7))
def test_stops_are_found_when_several_tokens_come_at_once(decoder_tokenizer, text, stops, size):
    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    found = first_found(decoder_tokenizer.decode, token_ids, stops, size)
    assert (found is not None) == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    "stop", ["quick brown fox jumps over the lazy", "k br", "lazy", "é", "北京"]
)
def test_a_stop_may_span_tokens_or_end_inside_of_one(decoder_tokenizer, stop):
    text = "x" * 300 + "The quick brown fox jumps over the lazy dog 北京 café."
    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    num = first_found(decoder_tokenizer.decode, token_ids, [stop])
    assert stop in decoder_tokenizer.decode(token_ids[:num])
    assert stop not in decoder_tokenizer.decode(token_ids[: num - 1])


def test_a_stop_is_found_before_half_a_character(decoder_tokenizer):
    half = decoder_tokenizer.encode("😀", add_special=False).ids[0]
    finder = StopFinder(["ab"], decoder_tokenizer.decode)
    assert finder.feed([*decoder_tokenizer.encode("ab", add_special=False).ids, half])


def test_a_broken_character_is_no_stop(decoder_tokenizer):
    token_ids = decoder_tokenizer.encode("😀", add_special=False).ids
    finder = StopFinder([BROKEN], decoder_tokenizer.decode)
    assert not any(finder.feed([token]) for token in token_ids)


def test_a_step_costs_the_same_however_long_the_text(decoder_tokenizer):
    lengths = []

    def decode(token_ids):
        lengths.append(len(token_ids))
        return decoder_tokenizer.decode(token_ids)

    token_ids = decoder_tokenizer.encode("word 北京 " * 300, add_special=False).ids
    assert first_found(decode, token_ids, ["never"]) is None
    assert max(lengths) <= 40
