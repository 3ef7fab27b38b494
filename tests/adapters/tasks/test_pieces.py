"""Pieces make up the text again, are of about equal length, and end where sentences do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.tasks.pieces import join_texts, split_text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text("ab .!é\n。北🙂", min_size=1, max_size=400), st.integers(1, 12))
def test_pieces_make_up_the_text_again_and_none_is_much_longer(text, num_pieces):
    pieces = split_text(text, num_pieces)
    rest = text
    for piece in pieces:
        before, found, rest = rest.partition(piece)
        assert found
        assert not before.strip()
        assert len(piece) <= len(text) / num_pieces * 1.25 + 1
    assert not rest.strip()
    assert len(pieces) <= num_pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The dog sleeps now. The sun is warm.", ["The dog sleeps now. ", "The sun is warm."]),
        ("狗在睡觉呢。太阳很温暖。", ["狗在睡觉呢。", "太阳很温暖。"]),
        ("one two three four five six seven", ["one two three ", "four five six seven"]),
        ("x" * 10, ["x" * 5, "x" * 5]),
        ("a", ["a"]),
    ],
)
def test_a_border_goes_to_the_nearest_end_of_a_sentence_or_word(text, pieces):
    assert split_text(text, 2) == pieces


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["A dog. ", " The sun."], "A dog. The sun."),
        (["狗在睡觉。", "太阳很温暖。"], "狗在睡觉。太阳很温暖。"),
        (["", " a ", " "], "a"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_their_script_has_it(texts, joined):
    assert join_texts(texts) == joined
