"""Text from a growing answer: the pieces joined are the whole, and no piece must ever be taken back."""

import pytest

from adapters.text_stream import StreamText

TEXT = "naïve 北京 😀 café\n\nEND of it"


def pieces(token_ids, decode, stops=(), size=1):
    stream = StreamText(decode, stops)
    given = [stream.push(token_ids[i : i + size]) for i in range(0, len(token_ids), size)]
    return [*given, stream.finish()]


def from_bytes(token_ids):
    return bytes(token_ids).decode(errors="replace")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_pieces_joined_are_the_text_and_none_holds_half_a_character(size):
    given = pieces(list(TEXT.encode()), from_bytes, size=size)
    assert "".join(given) == TEXT
    assert all("\ufffd" not in piece for piece in given)


def test_a_real_tokenizer_gives_the_same_text_as_decoding_at_once(decoder_tokenizer):
    token_ids = decoder_tokenizer.encode(TEXT).ids
    given = pieces(token_ids, decoder_tokenizer.decode)
    assert "".join(given) == decoder_tokenizer.decode(token_ids)


def test_half_a_character_at_the_very_end_is_given_at_the_end():
    assert pieces(list("aé".encode()[:-1]), from_bytes) == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["END"], "naïve 北京 😀 café\n\n"),
        (["\n\nEND"], "naïve 北京 😀 café"),
        (["\n", "END"], "naïve 北京 😀 café"),
        (["of it!"], TEXT),
        (["", "zzz"], TEXT),
    ],
)
def test_nothing_of_a_stop_string_or_behind_it_is_given(stops, expected):
    assert "".join(pieces(list(TEXT.encode()), from_bytes, stops)) == expected


def test_what_only_looks_like_a_stop_string_is_held_back_until_it_is_not():
    assert pieces(list(b"aEEND"), from_bytes, ["END"]) == ["a", "", "E", "", "", ""]
    assert pieces(list(b"aENx"), from_bytes, ["END"]) == ["a", "", "", "ENx", ""]
