"""Pieces of streamed text add up to the decoded whole, cut at its first stop string, however the tokens arrive."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from adapters.text_stream import BROKEN, Detokenizer, StreamText, cut_at_stop
from adapters.tokenizer import Tokenizer
from tests.tiny import sentencepiece_tokenizer

TEXT = st.text(
    st.one_of(st.sampled_from("ab 北é😀\ufffd"), st.characters(codec="utf-8")), max_size=80
)
STOP = st.text(st.sampled_from("ab 北é😀"), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def sentencepiece():
    return sentencepiece_tokenizer()


@pytest.fixture(scope="module")
def bytewise(sentencepiece):
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=sentencepiece), [0])


def pieces_of(stream, token_ids, sizes=(1,)):
    """Feed tokens in portions of these sizes, over and over, and return what came each time."""
    pieces, begin = [], 0
    while begin < len(token_ids):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream.feed(token_ids[begin : begin + size]))
        begin += size
    return [*pieces, stream.finish()]


@settings(deadline=None)
@given(text=TEXT, stops=st.lists(STOP, max_size=3), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_pieces_of_a_text_add_up(decoder_tokenizer, text, stops, sizes):
    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    pieces = pieces_of(StreamText(decoder_tokenizer.decode, stops), token_ids, sizes)
    assert "".join(pieces) == cut_at_stop(text, stops)


@settings(deadline=None)
@given(
    token_ids=st.lists(st.integers(0, 350), max_size=200),
    stops=st.lists(STOP, max_size=3),
    sizes=st.lists(st.integers(1, 9), min_size=1),
)
def test_pieces_of_any_tokens_add_up(decoder_tokenizer, token_ids, stops, sizes):
    pieces = pieces_of(StreamText(decoder_tokenizer.decode, stops), token_ids, sizes)
    assert "".join(pieces) == cut_at_stop(decoder_tokenizer.decode(token_ids), stops)


@settings(deadline=None)
@given(text=TEXT, stops=st.lists(STOP, max_size=3), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_pieces_add_up_where_decoding_drops_the_first_blank(sentencepiece, text, stops, sizes):
    token_ids = sentencepiece.encode(text).ids
    pieces = pieces_of(StreamText(sentencepiece.decode, stops), token_ids, sizes)
    assert "".join(pieces) == cut_at_stop(sentencepiece.decode(token_ids), stops)


@settings(deadline=None)
@given(text=TEXT, num_cut=st.integers(0, 5), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_pieces_add_up_where_the_last_character_is_not_finished(bytewise, text, num_cut, sizes):
    ids = bytewise.encode(text).ids
    token_ids = ids[: max(0, len(ids) - num_cut)]
    whole = bytewise.decode(token_ids)
    assert bytewise.decode(ids).startswith(whole.rstrip(BROKEN))
    assert "".join(pieces_of(StreamText(bytewise.decode), token_ids, sizes)) == whole


def test_an_unfinished_character_takes_none_before_it_away(bytewise):
    ids = bytewise.encode("a😀é😀").ids
    assert [bytewise.decode(ids[: len(ids) - n]) for n in range(6)] == [
        "a😀é😀",
        "a😀é\ufffd\ufffd\ufffd",
        "a😀é\ufffd\ufffd",
        "a😀é\ufffd",
        "a😀é",
        "a😀\ufffd",
    ]


def test_tokens_without_text_are_no_context(sentencepiece):
    """A blank after them is not the first one, which decoding drops."""
    blank_first = sentencepiece.encode("ab").ids
    token_ids = [*blank_first * 30, *[sentencepiece.token_to_id("</s>")] * 30, *blank_first]
    pieces = pieces_of(StreamText(sentencepiece.decode), token_ids)
    assert "".join(pieces) == " ".join(["ab"] * 31)


@settings(deadline=None)
@given(text=TEXT)
def test_no_piece_holds_half_a_character(decoder_tokenizer, text):
    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    pieces = pieces_of(StreamText(decoder_tokenizer.decode), token_ids)
    assert sum(piece.count(BROKEN) for piece in pieces) == text.count(BROKEN)


def test_text_comes_as_soon_as_it_is_sure(decoder_tokenizer):
    stream = StreamText(decoder_tokenizer.decode, ["STOP"])
    pieces = [
        (piece, stream.feed(decoder_tokenizer.encode(piece, add_special=False).ids))
        for piece in ("one", " S", "T", "ep", "S", "TOP", "more")
    ]
    assert [given for _, given in pieces] == ["one", " ", "", "STep", "", "", ""]
    assert stream.is_stopped
    assert stream.finish() == ""


def test_half_a_character_is_given_at_the_end_only(decoder_tokenizer):
    first, *rest = decoder_tokenizer.encode("😀", add_special=False).ids
    assert rest
    stream = StreamText(decoder_tokenizer.decode)
    assert stream.feed([first]) == ""
    assert stream.finish() == BROKEN


def test_what_may_be_a_stop_string_is_given_at_the_end(decoder_tokenizer):
    stream = StreamText(decoder_tokenizer.decode, ["\nUser:"])
    token_ids = decoder_tokenizer.encode("yes\nUse", add_special=False).ids
    assert "".join(stream.feed([token]) for token in token_ids) == "yes"
    assert stream.finish() == "\nUse"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcd", ["c", "bcd"], "a"),
        ("abcx", ["c", "bcd"], "ab"),
        ("abc", ["ab", "abc"], ""),
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd", "x"], "abc"),
        ("plain", [], "plain"),
    ],
)
def test_the_stop_string_that_begins_first_cuts(text, stops, expected):
    assert cut_at_stop(text, stops) == expected
    stream = StreamText(lambda ids: "".join(map(chr, ids)), stops)
    assert "".join(pieces_of(stream, [ord(character) for character in text])) == expected


@pytest.mark.parametrize("text", ["word " * 400, "北京" * 300, "😀é" * 200])
def test_no_step_decodes_the_whole_text(decoder_tokenizer, text):
    lengths = []

    def decode(token_ids):
        lengths.append(len(token_ids))
        return decoder_tokenizer.decode(token_ids)

    token_ids = decoder_tokenizer.encode(text, add_special=False).ids
    assert "".join(pieces_of(Detokenizer(decode), token_ids)) == text
    assert max(lengths) <= 40
    assert len(lengths) <= 1.5 * len(token_ids)


def test_endless_broken_bytes_are_given_in_time_and_decoded_in_portions(decoder_tokenizer):
    stray = decoder_tokenizer.encode("😀", add_special=False).ids[-1]
    lengths = []

    def decode(token_ids):
        lengths.append(len(token_ids))
        return decoder_tokenizer.decode(token_ids)

    pieces = pieces_of(Detokenizer(decode), [stray] * 1000)
    assert "".join(pieces) == BROKEN * 1000
    assert len("".join(pieces[:500])) > 400
    assert max(lengths) < 150
