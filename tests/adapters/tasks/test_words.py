"""Words and BIO spans: places in code points, and spans as seqeval reads them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from adapters.tasks.words import Span, join_words, read_spans, split_words, write_tags

seeded = settings(max_examples=300, deadline=None, derandomize=True)
tags = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b-c", "I-b-c"]), max_size=12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada met Grace.", ["Ada", "met", "Grace", "."]),
        ('"Don\'t!", she said', ['"', "Don't", "!", '"', ",", "she", "said"]),
        ("in the U.S. (1843)", ["in", "the", "U.S", ".", "(", "1843", ")"]),
        ("@ada likes #lace for $5", ["@ada", "likes", "#lace", "for", "$5"]),
        ("see http://a.b/c?d now", ["see", "http://a.b/c?d", "now"]),
        ("北京是 Beijing。", ["北", "京", "是", "Beijing", "。"]),
        ("été 🙂 ...", ["été", "🙂", ".", ".", "."]),
        (" \n\t", []),
    ],
)
def test_a_text_falls_into_words_and_the_marks_around_them(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


@seeded
@given(st.text("ab ,.(@北🙂é\n'", max_size=20) | st.text(max_size=20))
def test_words_hold_every_character_that_is_no_blank_in_order(text):
    places = split_words(text)
    assert places == sorted(places)
    assert [i for start, end in places for i in range(start, end)] == [
        i for i, character in enumerate(text) if not character.isspace()
    ]


def test_joined_words_stand_one_space_apart():
    text, places = join_words(["Ada", "北京", "🙂", "!"])
    assert text == "Ada 北京 🙂 !"
    assert [text[start:end] for start, end in places] == ["Ada", "北京", "🙂", "!"]


@seeded
@given(tags)
def test_spans_are_those_that_seqeval_reads(tags):
    ours = [(span.label, span.first, span.last) for span in read_spans(tags)]
    assert ours == get_entities(tags)


@seeded
@given(tags)
def test_tags_written_from_spans_are_read_as_the_same_spans(tags):
    spans = read_spans(tags)
    assert read_spans(write_tags(spans, len(tags))) == spans


def test_neighbouring_entities_stay_two():
    assert write_tags([Span("a", 0, 1), Span("a", 2, 2)], 4) == ["B-a", "I-a", "B-a", "O"]
