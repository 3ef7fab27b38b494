"""Stop words go, what carries the meaning stays, and a text is never emptied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.tasks.base import TaskParameters
from adapters.tasks.catalog import get_task
from adapters.tasks.stop_words import without_stop_words
from adapters.tasks.templates import TextRequest


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The film is not as good as the book", "en", "film not good book"),
        ("It's who'll the others, and a B.", "en", "It's who'll others, B."),
        ("theatre and another", "en", "theatre another"),
        ("To be or to be", "en", "To be or to be"),
        ("我的目的是了解这个城市的历史", "zh", "我目的了解城市历史"),
        ("他吃了饭", "zh", "他吃饭"),
        ("的了", "zh", "的了"),
    ],
)
def test_texts_without_them(text, language, expected):
    assert without_stop_words(text, language) == expected


@given(st.text(), st.sampled_from(["en", "zh"]))
def test_what_stays_stood_there_in_that_order(text, language):
    kept = iter(text)
    assert all(character in kept for character in without_stop_words(text, language))
    assert bool(without_stop_words(text, language)) == bool(text)


def test_a_task_reads_its_texts_without_them_in_training_and_serving(decoder_tokenizer):
    labels = {"labels": ["a", "b"]}
    plain, reduced = (
        get_task("text-classification", {**labels, **more}) for more in ({}, {"stop_words": "en"})
    )
    request = TextRequest(text="the good film", text_pair="a bad book")
    short = TextRequest(text="good film", text_pair="bad book")
    encoded = [
        task.encode(decoder_tokenizer, r, TaskParameters(), 50)
        for task, r in ((reduced, request), (plain, short))
    ]
    assert encoded[0].token_ids == encoded[1].token_ids
